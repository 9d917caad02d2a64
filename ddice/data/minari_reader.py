"""Reading Minari datasets fast. Observations have one row more than there are steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddice.data.environment import space_shapes
from ddice.data.minari_store import SOURCE_KEY
from ddice.data.paths import keys_of, leaf_at
from ddice.data.source import Bounds, Leaves, Source, leaves_of

Episode = tuple[Leaves, np.ndarray, np.ndarray, np.ndarray]
"""Observation leaves with T + 1 rows, actions, rewards and terminations with T."""


def read_minari(item: Any) -> Source:
    """Read a Minari id that is here or a `MinariDataset` (its selected episodes, in their order).

    Raises ValueError for spaces that are not supported and for episodes whose arrays do not fit
    together.
    """
    import minari

    dataset = minari.load_dataset(item) if isinstance(item, str) else item
    shapes, bounds = _supported(dataset)
    # Decoding by Minari itself would cost a millisecond per episode.
    native = getattr(dataset.storage, "FORMAT", "") == "hdf5"
    read = (
        _read_hdf5(Path(dataset.storage.data_path) / "main_data.hdf5", shapes)
        if native
        else _read_storage(dataset.storage)
    )
    source = _stack(dataset.id, shapes, bounds, read, dataset.episode_indices)
    metadata = dataset.storage.metadata
    source.dataset_id = dataset.id
    source.env_spec = metadata.get("eval_env_spec") or metadata.get("env_spec")
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if low is not None and high is not None and low != high:
        source.reference = (float(low), float(high))
        source.reference_source = str(metadata.get(SOURCE_KEY, "Minari"))
    return source


def _supported(dataset: Any) -> tuple[dict[str, tuple[int, ...]], Bounds]:
    import gymnasium

    actions, observations = dataset.action_space, dataset.observation_space
    if not isinstance(actions, gymnasium.spaces.Box):
        kind = (
            "discrete actions are"
            if isinstance(actions, (gymnasium.spaces.Discrete, gymnasium.spaces.MultiDiscrete))
            else "such actions are"
        )
        raise ValueError(
            f"{kind} not supported yet: expected a box as action space, got {actions} in "
            f"{dataset.id}"
        )
    if len(actions.shape) != 1 or not np.issubdtype(actions.dtype, np.floating):
        raise ValueError(
            f"expected an action space of A floats, got {actions} in {dataset.id}: discrete "
            "actions are not supported yet"
        )
    shapes = space_shapes(observations)
    if shapes is None:
        raise ValueError(
            f"expected boxes, or dicts of boxes, as observations, got {observations} in "
            f"{dataset.id}: others are not supported yet"
        )
    for path, shape in shapes.items():
        space = leaf_at(observations, path)
        if space.dtype == np.uint8 or len(shape) >= 3:
            raise ValueError(
                f"image observations are not supported yet: {path or 'the observation'} is "
                f"{space} in {dataset.id}"
            )
    return shapes, (actions.low.astype(np.float64), actions.high.astype(np.float64))


def _read_hdf5(
    path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> Callable[[Sequence[int]], Iterator[Episode]]:
    """A reader of episodes through HDF5's low-level interface; numbers are converted to float32
    on the way.
    """
    import h5py

    boolean = h5py.h5t.py_create(np.dtype(bool))

    def array(group: Any, name: str, dtype: type[np.generic], kind: Any) -> np.ndarray:
        data = h5py.h5d.open(group, name.encode())
        values = np.empty(data.shape, dtype)
        if values.size:
            try:
                data.read(h5py.h5s.ALL, h5py.h5s.ALL, values, kind)
            except OSError:  # a type that HDF5 does not convert, such as flags written as integers
                values = h5py.Dataset(data)[()].astype(dtype)
        return values

    def episodes(indices: Sequence[int]) -> Iterator[Episode]:
        number = h5py.h5t.NATIVE_FLOAT
        with h5py.File(path, "r") as file:
            for index in indices:
                group = h5py.h5g.open(file.id, f"episode_{index}".encode())
                leaves = {
                    leaf: array(
                        group,
                        "/".join(("observations", *keys_of(leaf))),  # a "/" in a key: a group
                        np.float32,
                        number,
                    )
                    for leaf in shapes
                }
                actions, rewards = (
                    array(group, "actions", np.float32, number),
                    array(group, "rewards", np.float32, number),
                )
                yield leaves, actions, rewards, array(group, "terminations", np.bool_, boolean)

    return episodes


def _read_storage(storage: Any) -> Callable[[Sequence[int]], Iterator[Episode]]:
    def episodes(indices: Sequence[int]) -> Iterator[Episode]:
        for episode in storage.get_episodes(indices):
            leaves = leaves_of(episode["observations"], "observations")
            yield (
                leaves,
                np.asarray(episode["actions"]),
                np.asarray(episode["rewards"]),
                np.asarray(episode["terminations"]),
            )

    return episodes


def _stack(
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    bounds: Bounds,
    read: Callable[[Sequence[int]], Iterator[Episode]],
    indices: Sequence[int],
) -> Source:
    """One after the other; rows of the source are the steps of its episodes, counted through."""
    leaves: dict[str, list[np.ndarray]] = {path: [] for path in shapes}
    actions, rewards, terminations = (
        [np.zeros((0, *bounds[0].shape), np.float32)],
        [np.zeros(0, np.float32)],
        [np.zeros(0, np.bool_)],
    )
    lengths: list[int] = []
    for index, (observed, taken, reward, terminated) in zip(indices, read(indices), strict=True):
        steps = len(taken)
        counts = {f"observations {path}".strip(): len(leaf) - 1 for path, leaf in observed.items()}
        counts |= {"rewards": len(reward), "terminations": len(terminated)}
        if steps and any(count != steps for count in counts.values()):
            raise ValueError(
                f"expected {steps} steps (and one observation more) in episode {index} of "
                f"{name}, as it has actions, got {counts}"
            )
        if steps:
            lengths.append(steps)
            actions.append(taken)
            rewards.append(reward)
            terminations.append(terminated)
            for path, leaf in observed.items():
                leaves[path].append(leaf)
    count = sum(lengths)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum([0, *lengths])[:-1]
    here = np.arange(count) + episode
    stacked = {
        path: np.concatenate(parts) if parts else np.zeros((0, *shapes[path]), np.float32)
        for path, parts in leaves.items()
    }
    ended = np.concatenate(terminations).astype(bool)
    source = Source(
        name=name,
        leaves=stacked,
        next_leaves=stacked,
        here=here,
        there=here + 1,
        actions=np.concatenate(actions),
        rewards=np.concatenate(rewards),
        terminations=ended,
        rows=np.arange(count),
        source_rows=count,
        episode=episode,
        initial_leaves={path: leaf[here[first]] for path, leaf in stacked.items()},
        initial_by_episode=True,
        bounds=bounds,
        empty_episodes=len(indices) - len(lengths),
    )
    early = int(ended.sum() - ended[first + np.asarray(lengths, np.int64) - 1].sum())
    if early:
        source.notes.append(f"{early} terminated rows are not the last of their episode")
    return source
