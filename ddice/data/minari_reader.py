"""Reading Minari datasets fast. Observations have one row more than there are steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddice.data.allowed import require_allowed
from ddice.data.checks import BYTES
from ddice.data.environment import clean_record, register_robotics, space_shapes
from ddice.data.minari_store import DAMAGED, SOURCE_KEY, dataset_metadata
from ddice.data.paths import keys_of, leaf_at
from ddice.data.source import Bounds, Leaves, Source, leaves_of

SHOWN = 200  # characters of an error of a library below


@dataclass(frozen=True)
class Episode:
    """Observation leaves with T + 1 rows, all else with T."""

    leaves: Leaves
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray


def read_minari(item: Any, trust_env: Sequence[str] = ()) -> Source:
    """Read a Minari id that is here or a `MinariDataset` (its selected episodes, in their order).

    Raises ValueError for spaces that are not supported and for episodes whose arrays do not fit
    together.
    """
    import minari

    if isinstance(item, str):
        _require_spaces(item, trust_env)
    name = item if isinstance(item, str) else f"the dataset in {item.storage.data_path}"
    with _undamaged(name):
        dataset = minari.load_dataset(item) if isinstance(item, str) else item
    shapes, bounds = _supported(dataset)
    # Decoding by Minari itself would cost a millisecond per episode.
    native = getattr(dataset.storage, "FORMAT", "") == "hdf5"
    main = Path(dataset.storage.data_path) / "main_data.hdf5"
    read = _read_hdf5(main, shapes) if native else _read_storage(dataset.storage)
    source = _stack(dataset.id, shapes, bounds, read, dataset.episode_indices)
    metadata = dataset.storage.metadata
    source.dataset_id = dataset.id
    if native:
        with _undamaged(name):
            lost = _lost(main, int(dataset.storage.total_episodes))
        source.notes += [] if lost is None else [lost]
    source.env_spec = metadata.get("eval_env_spec") or metadata.get("env_spec")
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if low is not None and high is not None and low != high:
        with _undamaged(name):
            source.reference = (float(low), float(high))
        source.reference_source = str(metadata.get(SOURCE_KEY, "Minari"))
    return source


@contextlib.contextmanager
def _undamaged(name: str) -> Iterator[None]:
    """Raise ValueError for what Minari and HDF5 raise for files that are not as they wrote them:
    errors of many kinds, some without a word.
    """
    try:
        yield
    except (LookupError, AssertionError, AttributeError, *(TypeError, ValueError), OSError,
            RuntimeError) as error:  # fmt: skip
        said = f"{type(error).__name__} {str(error)[:SHOWN]}".strip()
        raise ValueError(f"{name} cannot be read ({said}): {DAMAGED}") from error


def _require_spaces(dataset_id: str, trust_env: Sequence[str]) -> None:
    """Raise ValueError for a dataset without its spaces, which Minari asks the recorded
    environment for, unless that may be made.
    """
    metadata = dataset_metadata(dataset_id)
    if {"observation_space", "action_space"} <= metadata.keys():
        return
    if not isinstance(metadata.get("env_spec"), str):
        raise ValueError(f"{dataset_id} records neither its spaces nor its environment")
    register_robotics()
    require_allowed(clean_record(metadata["env_spec"]), trust_env)


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
        if space.dtype == np.uint8 and len(shape) <= 1:
            where = f"{path or 'the observation'} in {dataset.id}"
            raise ValueError(BYTES.format(name=where, shape=shape))
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

    def actions(group: Any) -> np.ndarray:
        """float64 stays: it is mapped to [-1, 1] before it becomes float32."""
        if h5py.h5d.open(group, b"actions").dtype == np.float64:
            return array(group, "actions", np.float64, h5py.h5t.NATIVE_DOUBLE)
        return array(group, "actions", np.float32, h5py.h5t.NATIVE_FLOAT)

    def episode(file: Any, index: int) -> Episode:
        number = h5py.h5t.NATIVE_FLOAT
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
        return Episode(
            leaves,
            actions(group),
            array(group, "rewards", np.float32, number),
            array(group, "terminations", np.bool_, boolean),
            array(group, "truncations", np.bool_, boolean),
        )

    def episodes(indices: Sequence[int]) -> Iterator[Episode]:
        with _undamaged(str(path)):
            file = h5py.File(path, "r")
        with file:
            for index in indices:
                with _undamaged(f"episode {index} of {path}"):
                    one = episode(file, index)
                yield one

    return episodes


def _read_storage(storage: Any) -> Callable[[Sequence[int]], Iterator[Episode]]:
    def episodes(indices: Sequence[int]) -> Iterator[Episode]:
        for episode in storage.get_episodes(indices):
            columns = ("actions", "rewards", "terminations", "truncations")
            yield Episode(
                leaves_of(episode["observations"], "observations"),
                *(np.asarray(episode[name]) for name in columns),
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
    actions = [np.zeros((0, *bounds[0].shape), np.float32)]
    rewards = [np.zeros(0, np.float32)]
    terminations = [np.zeros(0, np.bool_)]
    truncations = [np.zeros(0, np.bool_)]
    lengths: list[int] = []
    for index, episode in zip(indices, read(indices), strict=True):
        steps = len(episode.actions)
        if not steps:
            continue
        _require_steps(episode, steps, f"episode {index} of {name}")
        lengths.append(steps)
        actions.append(episode.actions)
        rewards.append(_column(episode.rewards, f"rewards in episode {index} of {name}"))
        terminations.append(episode.terminations)
        truncations.append(episode.truncations)
        for path, leaf in episode.leaves.items():
            leaves[path].append(leaf)
    count = sum(lengths)
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum([0, *lengths])[:-1]
    here = np.arange(count) + numbers
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
        episode=numbers,
        initial_leaves={path: leaf[here[first]] for path, leaf in stacked.items()},
        initial_by_episode=True,
        bounds=bounds,
        empty_episodes=len(indices) - len(lengths),
    )
    last = first + np.asarray(lengths, np.int64) - 1
    cut = np.concatenate(truncations).astype(bool)
    for what, flags, meaning in (
        ("terminated", ended, "values end there, returns go on"),
        ("truncated", cut, "what follows may be the start of another episode: cut them there"),
    ):
        early = int(flags.sum() - flags[last].sum())
        if early:
            source.notes.append(f"{early} {what} rows are not the last of their episode: {meaning}")
    return source


def _require_steps(episode: Episode, steps: int, name: str) -> None:
    leaves = episode.leaves.items()
    counts = {f"observations {path}".strip(): len(leaf) - 1 for path, leaf in leaves}
    for column in ("rewards", "terminations", "truncations"):
        counts[column] = len(getattr(episode, column))
    if any(count != steps for count in counts.values()):
        raise ValueError(
            f"expected {steps} steps (and one observation more) in {name}, as it has actions, got "
            f"{counts}"
        )


def _column(values: np.ndarray, name: str) -> np.ndarray:
    """(T,) from (T,) or (T, 1)."""
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"expected {name} with one number a step, got shape {values.shape}")
    return values


def _lost(path: Path, known: int) -> str | None:
    """What a file holds beyond the episodes that its metadata count: those of a writer that was
    stopped before it had counted them.
    """
    import h5py

    with h5py.File(path, "r") as file:
        there = sum(name.startswith("episode_") for name in file)
    if there <= known:
        return None
    return (
        f"{there - known} of {there} episodes in {path.name} are not counted in its metadata and "
        "left out: whatever wrote it was stopped before its end"
    )
