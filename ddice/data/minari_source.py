"""Minari datasets: reading them fast, and writing new ones. Observations have one row more than
there are steps.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddice.data.download import missing, obtain
from ddice.data.environment import clean_record, space_shapes
from ddice.data.source import Bounds, Leaves, Source, leaves_of

Episode = tuple[Leaves, np.ndarray, np.ndarray, np.ndarray]
"""Observation leaves with T + 1 rows, actions, rewards and terminations with T."""


def is_minari(item: Any) -> bool:
    from minari import MinariDataset

    return isinstance(item, MinariDataset)


def has_dataset(dataset_id: str) -> bool:
    """Whether a complete dataset of this id lies in the local Minari folder
    (`MINARI_DATASETS_PATH`, else `~/.minari/datasets`).
    """
    return dataset_metadata(dataset_id).get("total_episodes", 0) > 0


def dataset_metadata(dataset_id: str) -> dict[str, Any]:
    """What is written down about a local dataset; empty where there is none. Raises ValueError
    for a malformed id.
    """
    _require_id(dataset_id)
    try:
        return dict(json.loads((_folder(dataset_id) / "data" / "metadata.json").read_text()))
    except (OSError, ValueError):
        return {}


def _folder(dataset_id: str) -> Path:
    from minari.storage.datasets_root_dir import get_dataset_path

    return Path(get_dataset_path(dataset_id))


def _require_id(dataset_id: str) -> None:
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "expected a Minari id such as 'D4RL/pointmaze/umaze-v2' (namespace/name-v0), or a "
            f".npz, .hdf5 or .h5 file, got {dataset_id!r}"
        ) from error


def locate(item: Any, *, download: bool = True) -> Path:
    """The folder with the files of a Minari id, downloaded if need be, or of a `MinariDataset`.

    Raises ValueError for a malformed id; FileNotFoundError, at once, for a dataset that is neither
    here nor to be had, saying how to get or make it.
    """
    if not isinstance(item, str):
        return Path(item.storage.data_path)
    _require_id(item)
    if not has_dataset(item):
        if not download:
            raise FileNotFoundError(missing(item, "download=False was given"))
        obtain(item)
    return _folder(item) / "data"


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
    source.reference = (
        None if low is None or high is None or low == high else (float(low), float(high))
    )
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
        space = observations
        for key in path.split("/") if path else ():
            space = space[key]
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
                        f"observations/{leaf}" if leaf else "observations",
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


def write_dataset(
    dataset_id: str,
    episodes: Sequence[Mapping[str, Any]],
    *,
    env_spec_json: str | None,
    eval_env_spec_json: str | None,
    reference_scores: tuple[float, float] | None,
    description: str,
    algorithm: str,
    author: str = "ddice",
    requirements: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a new local Minari dataset in HDF5.

    Every episode holds `observations` (an array or nested dicts of arrays, T + 1 rows), `actions`,
    `rewards`, `terminations`, `truncations` (T rows), and may hold `seed`, `infos` and `metadata`
    (a flat dict of facts about it); `metadata` here is JSON to keep beside what Minari says of the
    set. Without an environment the spaces are unbounded boxes of the shapes of the first episode.
    Raises ValueError for a malformed id, no episodes, or an id that exists; a half-written dataset
    of a killed run is replaced.
    """
    import minari
    from gymnasium.envs.registration import EnvSpec
    from minari.data_collector import EpisodeBuffer

    _require_id(dataset_id)
    folder = _folder(dataset_id)
    if has_dataset(dataset_id):
        raise ValueError(
            f"a Minari dataset {dataset_id!r} exists already in {folder}: give another "
            f"version, or run `minari delete {dataset_id}`"
        )
    if not episodes:
        raise ValueError(f"expected at least one episode to write to {dataset_id!r}, got none")
    keys = ("observations", "actions", "rewards", "terminations", "truncations")
    buffers = [
        EpisodeBuffer(
            id=i, seed=e.get("seed"), infos=e.get("infos"), **{key: e[key] for key in keys}
        )
        for i, e in enumerate(episodes)
    ]
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that only uploads need
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=None
                if env_spec_json is None
                else EnvSpec.from_json(clean_record(env_spec_json).spec),
                eval_env=None
                if eval_env_spec_json is None
                else EnvSpec.from_json(clean_record(eval_env_spec_json).spec),
                observation_space=None
                if env_spec_json is not None
                else _space_of(episodes[0]["observations"]),
                action_space=None
                if env_spec_json is not None
                else _space_of(episodes[0]["actions"]),
                algorithm_name=algorithm,
                author=author,
                description=description,
                data_format="hdf5",
                requirements=list(requirements),
            )
        if any("metadata" in episode for episode in episodes):
            dataset.storage.update_episode_metadata(
                [dict(episode.get("metadata", {})) for episode in episodes]
            )
        if metadata is not None:
            dataset.storage.update_metadata(dict(metadata))
        if reference_scores is not None:
            dataset.storage.update_metadata(
                {
                    "ref_min_score": float(reference_scores[0]),
                    "ref_max_score": float(reference_scores[1]),
                }
            )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _space_of(values: Any) -> Any:
    import gymnasium

    if isinstance(values, Mapping):
        return gymnasium.spaces.Dict({key: _space_of(inner) for key, inner in values.items()})
    array = np.asarray(values)
    return gymnasium.spaces.Box(-np.inf, np.inf, shape=array.shape[1:], dtype=array.dtype.type)
