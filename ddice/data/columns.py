"""Columns under names of somebody else: which of them are ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ddice.core.config import unknown_name
from ddice.data.arrays import KEYS, REQUIRED, read_arrays
from ddice.data.source import Source, numeric

ColumnNames: TypeAlias = Mapping[str, str | Sequence[str]]
"""Our name -> theirs; several of theirs are put side by side."""

ELSEWHERE = {
    "observations": ("obs", "observation", "observation.state", "state", "states"),
    "next_observations": (
        "next_obs", "next_observation", "obs_next", "observations_next", "next_state",
        "next_states",
    ),
    "actions": ("action", "act", "acts"),
    "rewards": ("reward", "rew", "rews", "next.reward"),
    "terminations": ("terminated", "terminal", "terminals", "done", "dones", "next.done"),
    "truncations": ("truncated", "truncation", "timeout", "timeouts"),
    "episode_ids": ("episode", "episode_id", "episode_index", "traj_id", "trajectory_id"),
}  # fmt: skip
"""What other libraries call the columns."""

BOTH = ("done", "dones", "next.done")
"""Some of them mean the end of an episode by these, whatever ended it."""


def advice(names: Iterable[str]) -> str:
    """What to give as columns= for a table with columns of these names."""
    there = [str(name) for name in names]
    found = {
        ours: next(name for name in theirs if name in there)
        for ours, theirs in ELSEWHERE.items()
        if set(theirs) & set(there) and ours not in there
    }
    if not found:
        return "columns={'observations': ['x', 'y'], ...} says which columns are which"
    both = [name for name in found.values() if name in BOTH]
    caution = (
        f"; if {both[0]!r} is also true where time ran out, it is no termination: give it as "
        "truncations, or the column that tells them apart"
        if both
        else ""
    )
    unnamed = [name for name in REQUIRED if name not in found and name not in there]
    more = f", with {' and '.join(unnamed)} added" if unnamed else ""
    return f"these are names of another library, give columns={found}{more}{caution}"


def read_table(
    table: Mapping[str, Any],
    name: str,
    *,
    columns: ColumnNames | None,
    episode_steps: int | None,
) -> Source:
    """As `read_arrays`, of columns under any names. Columns that `columns` does not name are read
    where their name is one of ours. Raises ValueError for names that are not there.
    """
    if columns is None:
        foreign = [str(key) for key in table if key not in KEYS]
        if foreign:
            raise ValueError(f"{unknown_name(foreign[0], KEYS, 'array')} ({advice(table)})")
        return read_arrays(dict(table), name, episode_steps=episode_steps)
    for ours in columns:
        if ours not in KEYS:
            raise ValueError(f"columns=: {unknown_name(ours, KEYS, 'array')}")
    arrays = {ours: _side_by_side(table, theirs) for ours, theirs in columns.items()}
    arrays |= {key: table[key] for key in table if key in KEYS and key not in arrays}
    source = read_arrays(arrays, name, episode_steps=episode_steps)
    read = [one for theirs in columns.values() for one in _names(theirs)]
    # "state/pose" reads of the group "state".
    used = {*arrays, *read, *(one.partition("/")[0] for one in read)}
    if left := [str(key) for key in table if key not in used]:
        source.notes.append(f"columns that are not read: {', '.join(left)}")
    return source


def _names(theirs: str | Sequence[str]) -> list[str]:
    return [theirs] if isinstance(theirs, str) else list(theirs)


def _side_by_side(table: Mapping[str, Any], theirs: str | Sequence[str]) -> Any:
    """A column as it is, or several (N,) or (N, k) as one array (N, sum of k)."""
    for name in _names(theirs):
        if name not in table:
            raise ValueError(f"columns=: {unknown_name(name, [*map(str, table)], 'column')}")
    if isinstance(theirs, str):
        return table[theirs]
    parts = [numeric(table[name], name) for name in theirs]
    lengths = {name: len(part) for name, part in zip(theirs, parts, strict=True)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns=: expected columns of the same length, got {lengths}")
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)
