"""robomimic's layout: a group `data` with a group for each demonstration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddice.data.arrays import read_arrays
from ddice.data.source import Source

IMAGE = 3  # dimensions of an observation in a row, height, width and channels


def is_robomimic(names: Mapping[str, Any]) -> bool:
    """Whether an open HDF5 file holds demonstrations of robomimic."""
    group = names.get("data")
    if group is None or not hasattr(group, "keys"):  # a dataset has no keys
        return False
    return any(str(key).startswith("demo") for key in group)


def read_robomimic(file: Any, name: str) -> Source:
    """Read the low-dimensional observations of an open robomimic file, every demonstration an
    episode: obs, next_obs, actions, rewards and dones.

    `dones` are terminations, as robomimic's own offline algorithms take them; a demonstration that
    ends without one is cut there. Images are left out, which is said. Raises ValueError for
    demonstrations without what is needed.
    """
    demos = [file["data"][key] for key in sorted(file["data"].keys(), key=_number)]
    for demo in demos:
        for key in ("obs", "actions", "rewards", "dones"):
            if key not in demo:
                raise ValueError(
                    f"expected obs, actions, rewards and dones in every demonstration of "
                    f"robomimic, got {', '.join(demo.keys())} in {demo.name}: {key!r} is missing"
                )
    low = [key for key, node in demos[0]["obs"].items() if node.ndim - 1 < IMAGE]
    images = sorted(set(demos[0]["obs"].keys()) - set(low))
    if not low:
        raise ValueError(
            f"expected low-dimensional observations, got images alone: {', '.join(images)}; "
            "robomimic's dataset_states_to_obs.py writes a file with low-dimensional ones"
        )
    lengths = [len(demo["actions"]) for demo in demos]
    arrays: dict[str, Any] = {
        "observations": {key: _joined(demos, f"obs/{key}") for key in low},
        "actions": _joined(demos, "actions"),
        "rewards": _joined(demos, "rewards"),
        "terminations": _joined(demos, "dones"),
        "episode_ids": np.repeat(np.arange(len(demos)), lengths),
    }
    if all("next_obs" in demo for demo in demos):
        arrays["next_observations"] = {key: _joined(demos, f"next_obs/{key}") for key in low}
    source = read_arrays(arrays, name)
    if images:
        source.notes.append(f"images that are not read: {', '.join(images)}")
    return source


def _number(key: str) -> tuple[int, str]:
    """demo_10 comes after demo_9."""
    digits = key.rpartition("_")[2]
    return (int(digits) if digits.isdigit() else -1, key)


def _joined(demos: list[Any], path: str) -> np.ndarray:
    return np.concatenate([demo[path][()] for demo in demos])
