"""What every reader hands over: the leaves of the observations, untouched, and which of their
rows make a transition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddice.data.paths import path_below

Leaves = dict[str, np.ndarray]
Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass
class Source:
    """One dataset as read, before view, action map and checks of values.

    Observations are kept once: transition i goes from row `here[i]` of `leaves` to row `there[i]`
    of `next_leaves`, which is the same object unless the source brought next observations of its
    own. N transitions, E episodes.
    """

    name: str
    leaves: Leaves
    next_leaves: Leaves
    here: NDArray[np.int64]
    there: NDArray[np.int64]
    actions: np.ndarray
    rewards: np.ndarray
    terminations: NDArray[np.bool_]
    rows: NDArray[np.int64]
    source_rows: int
    episode: NDArray[np.int64] | None
    weights: np.ndarray | None = None
    initial_leaves: Leaves | None = None
    initial_weights: np.ndarray | None = None
    initial_by_episode: bool = False
    bounds: Bounds | None = None
    dataset_id: str | None = None
    env_spec: str | None = None
    reference: tuple[float, float] | None = None
    reference_source: str = "Minari"
    dropped_rows: int = 0
    unpaid_episodes: int = 0
    """Episodes whose only reward lies in dropped rows."""
    recorded_rewards: np.ndarray | None = None
    """(R,) of all recorded steps, None where each of them is a transition."""
    recorded_episode: NDArray[np.int64] | None = None
    """(R,) numbers of all recorded episodes."""
    kept_episodes: NDArray[np.int64] | None = None
    """(K,) those of them that have a transition, in the order of `episode`."""
    empty_episodes: int = 0
    unknown_next: NDArray[np.bool_] | None = None
    """True where the next observation is a stand-in (the row's own): terminated rows of sources
    that do not record it.
    """
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


def leaves_of(observations: Any, name: str) -> Leaves:
    """An array, or nested dicts of arrays, as {path: array}; keys are sorted, as Gymnasium sorts
    those of its dict spaces.

    Raises TypeError for lists of mixed lengths and for objects, ValueError for empty dicts.
    """
    if isinstance(observations, Mapping):
        if not observations:
            raise ValueError(f"expected {name} to hold at least one array, got an empty dict")
        leaves: Leaves = {}
        for key in sorted(observations, key=str):
            for path, leaf in leaves_of(observations[key], f"{name}[{key!r}]").items():
                leaves[path_below(key, path, name)] = leaf
        return leaves
    return {"": numeric(observations, name)}


def numeric(values: Any, name: str) -> np.ndarray:
    """`values` (an array, a tensor or a list) as a numpy array of numbers. Raises TypeError when
    it is none.
    """
    if isinstance(values, torch.Tensor):
        values = _plain_tensor(values, name)
    values = without_gaps(values, name)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise TypeError(
            f"expected {name} to be one array, got a ragged sequence: concatenate the episodes "
            "along the first axis"
        ) from error
    if array.dtype == object:
        raise TypeError(
            f"expected {name} to be an array of numbers, got objects ({_kinds(array)}): give "
            f"plain numbers, such as np.asarray({name}.tolist(), np.float32), and concatenate "
            "episodes along the first axis"
        )
    if array.dtype.name in NARROW_FLOATS:
        return array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"expected {name} to be an array of numbers, got dtype {array.dtype}: concatenate "
            "the episodes along the first axis"
        )
    return array


def without_gaps(values: Any, name: str) -> Any:
    """`values`, without the mask if they have one. Raises ValueError where it hides some."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    missing = int(np.ma.getmaskarray(values).sum())
    if missing:
        raise ValueError(
            f"expected {name} without gaps, got a masked array with {missing} masked values: "
            "remove these rows, or fill them and say so"
        )
    return values.data


NARROW_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Number formats that numpy does not have by itself; float32 holds all of their values."""


def _plain_tensor(values: torch.Tensor, name: str) -> torch.Tensor:
    """In memory, and in a format that numpy has."""
    if values.is_sparse or values.is_meta or values.layout != torch.strided:
        raise TypeError(
            f"expected {name} to be a plain tensor, got {values.layout} on {values.device}: give "
            f"{name}.to_dense()"
        )
    values = values.detach().cpu()
    narrow = str(values.dtype).removeprefix("torch.") in NARROW_FLOATS
    return values.float() if narrow else values


def _kinds(array: np.ndarray) -> str:
    found = sorted({type(value).__name__ for value in array.reshape(-1)[:100]})
    return ", ".join(found)


def concatenate(sources: Sequence[Source]) -> Source:
    """Several sources as one, in order; rows and episodes go on counting. Raises ValueError when
    they do not fit together.
    """
    if len(sources) == 1:
        return sources[0]
    first = sources[0]
    for other in sources[1:]:
        _must_fit(first, other)
    row_offsets = np.cumsum([0] + [s.source_rows for s in sources])
    here_offsets = np.cumsum([0] + [_length(s.leaves) for s in sources])
    there_offsets = np.cumsum([0] + [_length(s.next_leaves) for s in sources])
    same = all(s.next_leaves is s.leaves for s in sources)
    leaves = _concatenate_leaves([s.leaves for s in sources])
    episode = None
    if first.episode is not None:
        counts = np.cumsum(
            [0]
            + [int(s.episode[-1]) + 1 if s.episode is not None and len(s) else 0 for s in sources]
        )
        episode = np.concatenate(
            [s.episode + k for s, k in zip(sources, counts, strict=False) if s.episode is not None]
        )
    initial = [s.initial_leaves for s in sources if s.initial_leaves is not None]
    return Source(
        name=" + ".join(s.name for s in sources),
        leaves=leaves,
        next_leaves=leaves if same else _concatenate_leaves([s.next_leaves for s in sources]),
        here=np.concatenate([s.here + k for s, k in zip(sources, here_offsets, strict=False)]),
        there=np.concatenate([s.there + k for s, k in zip(sources, there_offsets, strict=False)]),
        actions=np.concatenate([s.actions for s in sources]),
        rewards=np.concatenate([s.rewards for s in sources]),
        terminations=np.concatenate([s.terminations for s in sources]),
        rows=np.concatenate([s.rows + k for s, k in zip(sources, row_offsets, strict=False)]),
        source_rows=int(row_offsets[-1]),
        episode=episode,
        weights=_concatenate_weights([s.weights for s in sources], [len(s) for s in sources]),
        initial_leaves=_concatenate_leaves(initial) if len(initial) == len(sources) else None,
        initial_weights=_concatenate_weights(
            [s.initial_weights for s in sources], [_length(i) for i in initial]
        )
        if len(initial) == len(sources)
        else None,
        initial_by_episode=all(s.initial_by_episode for s in sources),
        bounds=next((s.bounds for s in sources if s.bounds is not None), None),
        dataset_id=next((s.dataset_id for s in sources if s.dataset_id), None),
        env_spec=next((s.env_spec for s in sources if s.env_spec), None),
        reference=next((s.reference for s in sources if s.reference), None),
        reference_source=next((s.reference_source for s in sources if s.reference), "Minari"),
        dropped_rows=sum(s.dropped_rows for s in sources),
        unpaid_episodes=sum(s.unpaid_episodes for s in sources),
        **_concatenate_recorded(sources),
        empty_episodes=sum(s.empty_episodes for s in sources),
        unknown_next=np.concatenate(
            [np.zeros(len(s), bool) if s.unknown_next is None else s.unknown_next for s in sources]
        ),
        notes=[note for s in sources for note in s.notes],
    )


def _concatenate_recorded(sources: Sequence[Source]) -> dict[str, np.ndarray | None]:
    """All recorded steps of all sources; None where none of them dropped any."""
    if all(source.recorded_rewards is None for source in sources):
        return {"recorded_rewards": None, "recorded_episode": None, "kept_episodes": None}
    rewards: list[np.ndarray] = []
    episodes: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    count = 0
    for source in sources:
        own_rewards, own_episodes, own_kept = _recorded(source)
        rewards.append(own_rewards)
        episodes.append(own_episodes + count)
        kept.append(own_kept + count)
        count += int(own_episodes[-1]) + 1 if len(own_episodes) else 0
    return {
        "recorded_rewards": np.concatenate(rewards),
        "recorded_episode": np.concatenate(episodes),
        "kept_episodes": np.concatenate(kept),
    }


def _recorded(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards and episode numbers of all recorded steps, and the episodes with transitions."""
    rewards, episode = source.recorded_rewards, source.recorded_episode
    kept = source.kept_episodes
    if rewards is not None and episode is not None and kept is not None:
        return rewards, episode, kept
    assert source.episode is not None
    return source.rewards, source.episode, np.unique(source.episode)


def _must_fit(first: Source, other: Source) -> None:
    def shapes(leaves: Leaves) -> dict[str, tuple[int, ...]]:
        return {path: leaf.shape[1:] for path, leaf in leaves.items()}

    names = f"{first.name} and {other.name}"
    if shapes(first.leaves) != shapes(other.leaves):
        raise ValueError(
            f"expected sources with the same observations, got {shapes(first.leaves)} and "
            f"{shapes(other.leaves)} in {names}"
        )
    if first.actions.shape[1:] != other.actions.shape[1:]:
        raise ValueError(
            f"expected sources with the same actions, got {first.actions.shape[1:]} and "
            f"{other.actions.shape[1:]} in {names}"
        )
    if (first.episode is None) != (other.episode is None):
        raise ValueError(
            "expected either whole episodes or independent transitions in every source, got "
            f"both in {names}"
        )
    if (
        first.bounds is not None
        and other.bounds is not None
        and not all(map(np.array_equal, first.bounds, other.bounds))
    ):
        raise ValueError(
            f"expected sources with the same action space, got {first.bounds} and "
            f"{other.bounds} in {names}"
        )


def _length(leaves: Leaves) -> int:
    return len(next(iter(leaves.values())))


def _concatenate_leaves(parts: Sequence[Leaves]) -> Leaves:
    return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}


def _concatenate_weights(
    parts: Sequence[np.ndarray | None], lengths: Sequence[int]
) -> np.ndarray | None:
    if all(part is None for part in parts):
        return None
    return np.concatenate(
        [
            np.ones(n, np.float32) if part is None else part
            for part, n in zip(parts, lengths, strict=True)
        ]
    )
