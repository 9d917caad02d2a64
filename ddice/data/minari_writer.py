"""Writing new Minari datasets, in HDF5."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddice.data.environment import clean_record
from ddice.data.minari_store import SOURCE_KEY, dataset_folder, has_dataset, require_id
from ddice.data.spec import ReferenceScores


def write_dataset(
    dataset_id: str,
    episodes: Sequence[Mapping[str, Any]],
    *,
    env_spec_json: str | None,
    eval_env_spec_json: str | None,
    reference_scores: tuple[float, float] | ReferenceScores | None,
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

    require_id(dataset_id)
    folder = dataset_folder(dataset_id)
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
            dataset.storage.update_metadata(_references(reference_scores))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _references(given: tuple[float, float] | ReferenceScores) -> dict[str, Any]:
    """As Minari names them; whose they are, beside them, where they say it."""
    if isinstance(given, ReferenceScores):
        source = {SOURCE_KEY: given.source}
        return {"ref_min_score": given.random, "ref_max_score": given.expert, **source}
    return {"ref_min_score": float(given[0]), "ref_max_score": float(given[1])}


def _space_of(values: Any) -> Any:
    import gymnasium

    if isinstance(values, Mapping):
        return gymnasium.spaces.Dict({key: _space_of(inner) for key, inner in values.items()})
    array = np.asarray(values)
    return gymnasium.spaces.Box(-np.inf, np.inf, shape=array.shape[1:], dtype=array.dtype.type)
