"""Dicts of arrays: whole episodes in time order, or independent transitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddice.core.config import LARGEST_COUNT, unknown_name
from ddice.data.source import Leaves, Source, leaves_of, numeric, without_gaps

KEYS = (
    "observations",
    "actions",
    "rewards",
    "terminations",
    "truncations",
    "next_observations",
    "episode_ids",
    "initial_observations",
    "weights",
    "initial_weights",
)
REQUIRED = ("observations", "actions", "rewards")


def read_arrays(
    data: Mapping[str, Any], name: str = "arrays", *, episode_steps: int | None = None
) -> Source:
    """Read a dict of arrays with N rows each; observations may be nested dicts, flattened with
    sorted keys.

    Episodes end where `terminations | truncations` is true or `episode_ids` changes. With
    `next_observations` but neither `truncations` nor `episode_ids` the rows are independent
    transitions: they have no episodes, and initial observations only if `initial_observations`
    gives them. Without `next_observations` the next observation is the next row's, so a truncated
    or unfinished episode loses its last row (counted, with a warning) and a terminated one keeps
    it. `episode_steps` stands in for truncations that were not recorded: an episode that has not
    terminated is cut after that many rows. Raises ValueError and TypeError for unknown or missing
    keys, mismatched lengths, and data without any notion of episodes.
    """
    for key in data:
        if key not in KEYS:
            raise ValueError(unknown_name(str(key), KEYS, "array"))
    for key in REQUIRED:
        if data.get(key) is None:
            raise ValueError(
                f"expected the arrays {', '.join(REQUIRED)}, got {', '.join(data) or 'none'}: "
                f"{key!r} is missing"
            )
    observations = leaves_of(data["observations"], "observations")
    actions = numeric(data["actions"], "actions")
    count = len(actions) if actions.ndim else 0
    columns = {
        key: column_of(data, key)
        for key in ("rewards", "terminations", "truncations", "episode_ids", "weights")
    }
    _same_length(count, observations, columns)
    terminations = flags(columns["terminations"], count, "terminations")
    if episode_steps is not None:
        if columns["truncations"] is not None or columns["episode_ids"] is not None:
            raise ValueError(
                "expected episode_steps only where nothing says where episodes are cut, which "
                f"{name} does: leave it out"
            )
        columns["truncations"] = _cut_after(episode_steps, terminations)
    following = (
        None
        if data.get("next_observations") is None
        else leaves_of(data["next_observations"], "next_observations")
    )
    if following is not None:
        _same_leaves(observations, following, "next_observations")
        _same_length(count, following, {}, "next_observations")
    source = Source(
        name=name,
        leaves=observations,
        next_leaves=observations if following is None else following,
        here=np.arange(count),
        there=np.arange(count),
        actions=actions,
        rewards=_given(columns["rewards"]),
        terminations=terminations,
        rows=np.arange(count),
        source_rows=count,
        episode=None,
        weights=columns["weights"],
    )
    if (
        columns["truncations"] is not None
        or columns["episode_ids"] is not None
        or (columns["terminations"] is not None and following is None)
    ):
        _cut_into_episodes(source, columns, following is not None)
    elif following is None:
        raise ValueError(
            "expected terminations and truncations, or episode_ids, to know where episodes "
            "end; give next_observations for independent transitions"
        )
    _take_initial(source, data)
    return source


def _cut_into_episodes(
    source: Source, columns: Mapping[str, np.ndarray | None], has_next: bool
) -> None:
    count = len(source)
    if not count:
        source.episode = np.zeros(0, np.int64)
        return
    ends = source.terminations | flags(columns["truncations"], count, "truncations")
    identifiers = columns["episode_ids"]
    if identifiers is not None:
        changes = identifiers[1:] != identifiers[:-1]
        if len(np.unique(identifiers)) != int(changes.sum()) + 1:
            raise ValueError(
                "expected episode_ids in one block per episode, got an id that comes back "
                "later: sort the rows by episode and time"
            )
        ends[:-1] |= changes
    ends[-1] = True
    starts = np.concatenate([[True], ends[:-1]])
    episode = np.cumsum(starts) - 1
    if has_next:
        _check_chain(source, ends)
        source.episode = episode
        return
    keep = ~ends | source.terminations
    if columns["truncations"] is None and identifiers is None:
        source.notes.append(
            "no truncations were given: every row that does not terminate is taken to lead to "
            "the next row (give episode_steps= if episodes were cut after that many rows)"
        )
    source.dropped_rows = int((~keep).sum())
    if source.dropped_rows:
        note = (
            f"{source.dropped_rows} of {count} rows dropped: they end a truncated or "
            "unfinished episode, whose next observation the arrays do not hold (give "
            "next_observations to keep them)"
        )
        source.notes.append(note)
        _remember_dropped(source, episode, keep)
    source.empty_episodes = int(ends.sum()) - len(np.unique(episode[keep]))
    rows = np.flatnonzero(keep)
    source.here, source.rows = rows, rows
    source.there = np.where(source.terminations[rows], rows, rows + 1)
    source.unknown_next = source.terminations[rows]
    source.actions, source.rewards, source.terminations = (
        source.actions[rows],
        source.rewards[rows],
        source.terminations[rows],
    )
    source.weights = None if source.weights is None else source.weights[rows]
    source.episode = np.unique(episode[keep], return_inverse=True)[1].reshape(-1)


def _remember_dropped(
    source: Source,
    episode: np.ndarray,  # (R,)
    keep: np.ndarray,  # (R,) bool
) -> None:
    """Returns and lengths are those of all that was recorded, dropped rows included."""
    source.recorded_rewards, source.recorded_episode = source.rewards, episode
    source.kept_episodes = np.unique(episode[keep])
    count = int(episode[-1]) + 1
    paid = source.rewards != 0
    kept = np.bincount(episode, paid & keep, minlength=count)
    dropped = np.bincount(episode, paid & ~keep, minlength=count)
    source.unpaid_episodes = int(((kept == 0) & (dropped > 0)).sum())
    if source.unpaid_episodes:
        source.notes.append(
            f"the dropped rows hold the only reward of {source.unpaid_episodes} of {count} "
            "episodes: returns count it, but training never sees it (give next_observations)"
        )


def _cut_after(steps: int, terminations: np.ndarray) -> np.ndarray:
    """True in every `steps`-th row since the last termination."""
    if not isinstance(steps, (int, np.integer)) or not 1 <= steps <= LARGEST_COUNT:
        raise ValueError(
            f"expected episode_steps to be a whole number, 1 to {LARGEST_COUNT:,}, got {steps!r}"
        )
    row = np.arange(len(terminations))
    first = np.maximum.accumulate(
        np.where(np.concatenate([[True], terminations[:-1]])[: len(row)], row, 0)
    )
    return np.asarray((row - first + 1) % steps == 0)


def _check_chain(source: Source, ends: np.ndarray) -> None:
    """Shuffled transitions read as episodes would give wrong returns and wrong initial
    observations without any sign of it.
    """
    inside = np.flatnonzero(~ends)
    if not len(inside):
        return
    broken = np.zeros(len(inside), bool)
    for path, leaf in source.leaves.items():
        after, own = source.next_leaves[path][inside], leaf[inside + 1]
        broken |= ~np.isclose(after, own, rtol=1e-4, atol=1e-4, equal_nan=True).reshape(
            len(inside), -1
        ).all(1)
    if broken.mean() > 0.5:
        raise ValueError(
            f"expected whole episodes in time order, but in {broken.mean():.0%} of the rows "
            "next_observations is not the observation of the next row (first: row "
            f"{inside[broken.argmax()]}): leave truncations and episode_ids out to read "
            "independent transitions"
        )


def _take_initial(source: Source, data: Mapping[str, Any]) -> None:
    if data.get("initial_observations") is not None:
        source.initial_leaves = leaves_of(data["initial_observations"], "initial_observations")
        _same_leaves(source.leaves, source.initial_leaves, "initial_observations")
        lengths = {path: len(leaf) for path, leaf in source.initial_leaves.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise ValueError(
                "expected initial_observations with one and the same number of rows, at least "
                f"1, got {lengths}"
            )
        source.initial_weights = column_of(data, "initial_weights")
        if source.initial_weights is not None and len(source.initial_weights) != len(
            next(iter(source.initial_leaves.values()))
        ):
            raise ValueError(
                "expected as many initial_weights as initial_observations, got "
                f"{len(source.initial_weights)} and {lengths}"
            )
    elif data.get("initial_weights") is not None:
        raise ValueError("expected initial_weights only together with initial_observations")
    elif source.episode is not None and len(source):
        first = np.concatenate([[True], source.episode[1:] != source.episode[:-1]])
        source.initial_by_episode = True
        source.initial_leaves = {
            path: leaf[source.here[first]] for path, leaf in source.leaves.items()
        }
        source.initial_weights = None if source.weights is None else source.weights[first]


def column_of(data: Mapping[str, Any], key: str) -> np.ndarray | None:
    """One number (or episode id) per row, (N,), from shape (N,) or (N, 1); None where there is
    no such key.
    """
    if data.get(key) is None:
        return None
    if key == "episode_ids":  # which may be text
        column = np.asarray(without_gaps(data[key], key))
    else:
        column = numeric(data[key], key)
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != 1:
        raise ValueError(f"expected {key} of shape (N,), got {column.shape}")
    return column


def _given(column: np.ndarray | None) -> np.ndarray:
    assert column is not None
    return column


def flags(column: np.ndarray | None, count: int, name: str) -> np.ndarray:
    """A column of 0 and 1 as booleans; none means `count` times False. Raises ValueError for
    other numbers.
    """
    if column is None:
        return np.zeros(count, bool)
    if column.dtype != bool and not np.isin(column, (0, 1)).all():
        worst = int(np.flatnonzero(~np.isin(column, (0, 1)))[0])
        raise ValueError(f"expected {name} of booleans, got {column[worst]} in row {worst}")
    return column.astype(bool)


def _same_length(
    count: int, leaves: Leaves, columns: Mapping[str, np.ndarray | None], what: str = "observations"
) -> None:
    lengths = {
        f"{what}[{path!r}]" if path else what: len(leaf) if leaf.ndim else 0
        for path, leaf in leaves.items()
    }
    lengths.update({key: len(column) for key, column in columns.items() if column is not None})
    if any(length != count for length in lengths.values()):
        listing = ", ".join(
            f"{key} {length}" for key, length in {"actions": count, **lengths}.items()
        )
        raise ValueError(
            f"expected arrays of the same length, got {listing}: one row per step; put the "
            "observation after the last step into next_observations"
        )


def _same_leaves(observations: Leaves, other: Leaves, name: str) -> None:
    ours, theirs = (
        {path: leaf.shape[1:] for path, leaf in leaves.items()} for leaves in (observations, other)
    )
    if ours != theirs:
        raise ValueError(f"expected {name} with the shapes of observations, {ours}, got {theirs}")
