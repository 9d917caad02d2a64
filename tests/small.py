"""Small data and recipes: whole trainings in a second, on networks of eight units."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ddice.core.config import merge
from ddice.runs.alarms.report import LABELS
from ddice.runs.presets import PRESETS
from ddice.runs.recipe import Recipe
from ddice.testing import catalogue

ENV = "Pendulum-v1"  # its spaces: observations (3,), actions (1,) in [-2, 2]; episodes of 200 steps
SHORT = "ddice-test/Pendulum-v0"  # the same in episodes of 20 steps; known to this process only
gymnasium.register(
    SHORT, "gymnasium.envs.classic_control.pendulum:PendulumEnv", max_episode_steps=20
)
EPISODES, LENGTH = 12, 10

ratio = catalogue.twice_above  # "small:ratio" in recipes of the tests
q = catalogue.first_action
NETWORK = dict(catalogue.NETWORK)
SOLVER = dict(catalogue.SOLVER)
BACKENDS = {example.kind: dict(example.fields) for example in catalogue.BACKENDS}
EXTRACTORS = {example.kind: dict(example.fields) for example in catalogue.EXTRACTORS}
FIELDS: dict[str, Any] = {
    "prior": {"network": {"width": 8, "blocks": 1}, "batch_size": 16},
    "backend": BACKENDS["piecewise_f"],
    "extractor": EXTRACTORS["guide_then_select"],
    "steps": {"prior": 12, "backend": 10, "extractor": 8},
    "evaluation": {"episodes": 2},
}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Whole episodes for `ENV`: every third one terminates, the others are cut; the last row of
    a cut one is lost.
    """
    random = np.random.default_rng(seed)
    count = EPISODES * LENGTH
    last = np.arange(count) % LENGTH == LENGTH - 1
    third = np.arange(count) // LENGTH % 3 == 0
    angle = random.uniform(-np.pi, np.pi, count)
    return {
        "observations": np.stack(
            [np.cos(angle), np.sin(angle), random.normal(size=count)], 1
        ).astype(np.float32),
        "actions": random.uniform(-2, 2, (count, 1)).astype(np.float32),
        "rewards": random.normal(size=count).astype(np.float32),
        "terminations": last & third,
        "truncations": last & ~third,
    }


def write_npz(path: Path, seed: int = 0) -> Path:
    np.savez(path, **arrays(seed))
    return path


def recipe(source: Path | str, preset: str = "default", **changes: Any) -> Recipe:
    """The small recipe on a .npz, with `changes` of its top-level fields."""
    fields = merge(
        PRESETS[preset].model_dump(mode="json"),
        {**FIELDS, "data": {"source": str(source), "env": ENV}},
    )
    return Recipe.model_validate(merge(fields, changes))


def flags(source: Path | str, fields: dict[str, Any] | None = None, prefix: str = "") -> list[str]:
    """The same as options of the command line; `prefix` is "recipe." for compare."""
    import json

    tree = {**FIELDS, "data": {"source": str(source), "env": ENV}} if fields is None else fields
    found: list[str] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found += flags(source, value, f"{prefix}{name}.")
        else:
            found += [f"--{prefix}{name}", value if isinstance(value, str) else json.dumps(value)]
    return found


def digests(folder: Path) -> dict[str, str]:
    """Every file below a folder by its content, but hidden ones: lock and status know the time."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in files
    }


def without_alarms(said: Iterable[str]) -> list[str]:
    """Lines that are printed, but for the numbers of alarms, which have tests of their own."""
    labels = tuple(f"  {label}" for label in LABELS.values())
    return [line for line in said if not line.startswith(("alarms of the stage", *labels))]
