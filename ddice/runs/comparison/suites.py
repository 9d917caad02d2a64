"""Comparisons by name: their datasets, settings and published scores, and what to put where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddice.data.download import why_not
from ddice.data.minari_store import has_dataset
from ddice.runs.comparison.grid import Comparison
from ddice.runs.presets.named import PRESETS
from ddice.runs.presets.tasks import SOURCE, TASKS, Task

FILES = (".hdf5", ".npz")
_SOLVER = {"kind": "multi_step", "evaluations": 8, "spacing": "quadratic"}
# what the tables of docs/which.md were made with
_EXTRACTORS = {
    "weighted_bc": {"kind": "weighted_bc", "solver": _SOLVER},
    "select_only": {"kind": "select_only", "candidates": 8, "solver": _SOLVER},
    "guide_only": {"kind": "guide_then_select", "candidates": 1, "solver": _SOLVER},
    "guide_then_select": {"kind": "guide_then_select", "candidates": 4, "solver": _SOLVER},
}
_PIECEWISE = {
    "kind": "piecewise_f",
    "temperature": "ess:0.3",
    "polyak": 0.05,
    "warm_start_steps": 2000,
    "batch_size": 256,
    "value": {"hidden": [128, 128], "layer_norm": True},
    "optimizer": {"learning_rate": 1e-3, "decay": "cosine"},
    "selector": {"kind": "advantage", "network": {"hidden": [128, 128]}},
    "critic": {"hidden": [128, 128]},
}
# where the published files lie; d4rl/infos.py of Farama-Foundation/D4RL lists those of AntMaze
_SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
_ANTMAZE = {
    "antmaze-umaze-v2": "u-maze_noisy_multistart_False_multigoal_False",
    "antmaze-umaze-diverse-v2": "u-maze_noisy_multistart_True_multigoal_True",
    "antmaze-medium-play-v2": "big-maze_noisy_multistart_True_multigoal_False",
    "antmaze-medium-diverse-v2": "big-maze_noisy_multistart_True_multigoal_True",
    "antmaze-large-play-v2": "hardest-maze_noisy_multistart_True_multigoal_False",
    "antmaze-large-diverse-v2": "hardest-maze_noisy_multistart_True_multigoal_True",
}


@dataclass(frozen=True)
class Suite:
    """Fields of a comparison. `obtain` says of each dataset how its file comes to its place, of
    those that nothing downloads; `needs_env` of how to evaluate where Gymnasium lacks the
    environment.
    """

    about: str
    preset: str
    sources: Mapping[str, str]
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the comparison
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the recipe of every dataset
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # and of some
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    published_by: str = ""
    obtain: Mapping[str, str] = field(default_factory=dict)
    needs_env: str = ""

    def comparison(self, folder: Path) -> dict[str, Any]:
        """The fields, as of a configuration file; its own files lie in `folder`."""
        datasets = {
            name: {
                "recipe": {
                    **self.tasks.get(name, {}),
                    "data": {
                        **self.tasks.get(name, {}).get("data", {}),
                        "source": str(folder / source) if source.endswith(FILES) else source,
                    },
                },
                "published": dict(self.published.get(name, {})),
                "published_by": self.published_by if name in self.published else "",
            }
            for name, source in self.sources.items()
        }
        recipe = PRESETS[self.preset].model_dump(mode="json")
        return {**self.fields, "recipe": _over(recipe, self.changes), "datasets": datasets}

    def require(self, comparison: Comparison) -> None:
        """Raise ValueError that says of every dataset that is not here what to put where."""
        missing, homeless = [], []
        for task in comparison.tasks:
            name, data = str(task.name), task.recipe.data
            cause = _missing(data.source, self.obtain.get(name))
            if cause is not None:
                missing.append(f"  {name}: {cause}")
            if self.needs_env and data.env is None:
                homeless.append(name)
        if missing:
            raise ValueError(
                "the suite lacks data, and nothing was begun; a folder of your own is given by "
                "--files FOLDER:\n" + "\n".join(missing)
            )
        if homeless:
            raise ValueError(f"no environment to play {', '.join(homeless)} in: {self.needs_env}")


def _over(recipe: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {**recipe, **{name: {**recipe[name], **value} for name, value in changes.items()}}


def _missing(source: str | tuple[str, ...], obtain: str | None) -> str | None:
    """What to do for a source that is not here, nor to be downloaded; None for others."""
    if not isinstance(source, str):  # of the user's own
        return None
    if source.endswith(FILES):
        return None if Path(source).exists() else obtain or f"put the file at {source}"
    if has_dataset(source):
        return None
    return obtain or why_not(source)


def _published(tasks: Mapping[str, Task]) -> dict[str, dict[str, float]]:
    return {
        name: {"Diffusion-DICE": task.score, "best other method": task.best_other}
        for name, task in tasks.items()
    }


def _changes(task: Task) -> dict[str, Any]:
    """Of its task, without what is None: there the recipe of the comparison holds."""
    changes = task.changes()
    environment = {} if task.environment is None else {"env": task.environment}
    return {**changes, "data": environment}


def _d4rl(tasks: Mapping[str, Task], urls: Mapping[str, str], about: str, env: str = "") -> Suite:
    return Suite(
        about=about,
        preset="official",
        sources={name: f"{name}.hdf5" for name in tasks},
        fields={"seeds": [0, 1, 2, 3, 4]},
        tasks={name: _changes(task) for name, task in tasks.items()},
        published=_published(tasks),
        published_by=SOURCE,
        obtain={name: f"put {urls[name]} as {name}.hdf5 into that folder" for name in tasks},
        needs_env=env,
    )


def _collected(name: str) -> str:
    return (
        f"collect it as regen/hopper/{name}, 200,000 steps: ddice data collect "
        f"regen/hopper/{name} --env Hopper-v5 --policy model.zip --trust-pickle, see "
        "docs/collect.md and the end of docs/which.md"
    )


def _cube(size: str) -> str:
    name = f"cube-{size}-play-singletask-v0"
    return (
        'write its file with the package ogbench: python -c "import numpy, ogbench; _, train, _ = '
        f"ogbench.make_env_and_datasets('{name}'); numpy.savez('{name}.npz', **train)\""
    )


_WALKS = {name: task for name, task in TASKS.items() if not name.startswith("antmaze")}
_MAZES = {name: task for name, task in TASKS.items() if name.startswith("antmaze")}
_WALK_URLS = {
    name: f"{_SERVER}/gym_mujoco_v2/{name.replace('-', '_').replace('_v2', '-v2')}.hdf5"
    for name in _WALKS
}
_MAZE_URLS = {
    name: f"{_SERVER}/ant_maze_v2/Ant_maze_{file}_sparse_fixed.hdf5"
    for name, file in _ANTMAZE.items()
}
_CUBES = {f"cube-{size}": f"cube-{size}-play-singletask-v0" for size in ("single", "double")}

SUITES: dict[str, Suite] = {
    "pointmaze": Suite(
        about="PointMaze umaze and medium with a fixed goal, made by ddice data make",
        preset="default",
        sources={name: f"ddice/pointmaze-{name}-v0" for name in ("umaze", "medium")},
        fields={
            "backends": {"piecewise_f": _PIECEWISE},
            "extractors": _EXTRACTORS,
            "seeds": [0, 1, 2],
        },
        changes={
            "data": {"goal": "fixed"},
            "steps": {"prior": 6000, "backend": 12_000, "extractor": 5000},
            "evaluation": {"episodes": 50},
        },
        obtain={name: f"make it: ddice data make pointmaze-{name}" for name in ("umaze", "medium")},
    ),
    "hopper-regenerated": Suite(
        about="three Hopper sets of published policies, collected on your own machine",
        preset="default",
        sources={
            name: f"regen/hopper/{name}-v0" for name in ("medium", "medium-expert", "multi-policy")
        },
        fields={
            "backends": {"piecewise_f": _PIECEWISE},
            "extractors": _EXTRACTORS,
            "seeds": [0, 1, 2],
        },
        changes={
            "steps": {"prior": 6000, "backend": 10_000, "extractor": 4000},
            "evaluation": {"episodes": 30},
        },
        obtain={
            name: _collected(f"{name}-v0") for name in ("medium", "medium-expert", "multi-policy")
        },
    ),
    "mujoco": Suite(
        about="Minari's hopper, halfcheetah and walker2d, which are downloaded",
        preset="locomotion",
        sources={
            f"{robot}-{quality}": f"mujoco/{robot}/{quality}-v0"
            for robot in ("hopper", "halfcheetah", "walker2d")
            for quality in ("simple", "medium", "expert")
        },
        fields={"extractors": _EXTRACTORS, "seeds": [0, 1, 2]},
    ),
    "d4rl-locomotion": _d4rl(
        _WALKS, _WALK_URLS, "nine tasks of Diffusion-DICE, as published, from files of D4RL"
    ),
    "d4rl-antmaze": _d4rl(
        _MAZES,
        _MAZE_URLS,
        "six tasks of Diffusion-DICE, as published, from files of D4RL",
        env=(
            "Gymnasium has none with the 29 observations of D4RL's AntMaze. Name one in a file "
            'for --config, {"datasets": {"antmaze-umaze-v2": {"recipe": {"data": {"env": '
            '"module:Id-v0"}}}}}, with --trust-env module'
        ),
    ),
    "adroit": Suite(
        about="Minari's pen, door, hammer and relocate of D4RL, which are downloaded",
        preset="dexterous",
        sources={
            f"{tool}-{quality}": f"D4RL/{tool}/{quality}-v2"
            for tool in ("pen", "door", "hammer", "relocate")
            for quality in ("human", "cloned", "expert")
        },
        fields={"extractors": _EXTRACTORS, "seeds": [0, 1, 2]},
    ),
    "ogbench-cube": Suite(
        about="OGBench's cubes with one task each; play needs the package ogbench",
        preset="maze",
        sources={name: f"{file}.npz" for name, file in _CUBES.items()},
        fields={"extractors": _EXTRACTORS, "seeds": [0, 1, 2]},
        tasks={
            f"cube-{size}": {"data": {"env": f"ogbench:cube-{size}-singletask-v0"}}
            for size in ("single", "double")
        },
        obtain={f"cube-{size}": _cube(size) for size in ("single", "double")},
    ),
}
