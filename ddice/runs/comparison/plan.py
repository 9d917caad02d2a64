"""What a comparison is going to do, and how long that takes on this machine."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddice.core import cache
from ddice.core.storage import load_tensors
from ddice.data import Transitions
from ddice.parts.loop import CHECKPOINT
from ddice.parts.stage import Stage
from ddice.policies.evaluation.pace import evaluation_seconds
from ddice.runs.comparison.cells import Shelf, plan_jobs
from ddice.runs.comparison.grid import Cell, Comparison
from ddice.runs.comparison.store import Results, cell_key
from ddice.runs.forecast import forecast_stage, set_step
from ddice.runs.split import Split
from ddice.runs.training import Training


@dataclass
class Task:
    """What is left of one kind of work, over all seeds: steps of training or episodes, and the
    seconds that they take here.
    """

    name: str
    unit: str
    count: int = 0
    seconds: float = 0.0


@dataclass
class _Known:
    """What is known so far: planned work, its stages, and seconds of one step or episode of it."""

    tasks: dict[str, Task] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    paces: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, unit: str, count: int) -> None:
        task = self.tasks.setdefault(name, Task(name, unit))
        task.count += count
        task.seconds += count * self.paces[name]


class _Plan(Training):
    """Measures a few steps of each stage in place of training it; what is in the cache is done."""

    def __init__(self, cell: Cell, data: Split, known: _Known, trust_env: Sequence[str]):
        # Keys leave the learning curve out, and so does the plan.
        recipe = cell.recipe.without_curve
        super().__init__(recipe, data, progress=False, say=_quiet, trust_env=trust_env)
        self.cell = cell
        self.known = known

    def do(self, stage: Stage) -> None:
        if stage.start == stage.stop:
            return
        key, name = self._key(stage), self._name(stage)
        if key not in self.known.keys:
            self.known.keys.add(key)
            if name not in self.known.paces:
                found = forecast_stage(stage, self.data)
                self.known.paces[name] = found.seconds / found.steps
            self.known.add(name, "steps", _left(stage, cache.entry(stage.name, key)))
        for part in stage.parts.values():
            part.prepare(self.data)
            set_step(part, stage.stop)  # the stages that read it ask how long it was trained

    def _name(self, stage: Stage) -> str:
        names = {
            "prior": "prior",
            "backend": f"backend {self.cell.backend}",
            "calibration": f"calibration of {self.cell.backend}",
            "extractor": f"extractor {self.cell.extractor} of {self.cell.backend}",
        }
        joint = f"{self.cell.backend} with {self.cell.extractor}"
        return _of(self.cell, names.get(stage.name, joint))


def _quiet(text: str) -> None:
    """Nothing is trained of which there is something to say."""


def _left(stage: Stage, entry: cache.Entry) -> int:
    """Steps that are neither in the cache nor in a checkpoint there."""
    if entry.state.exists():
        return 0
    try:
        _, meta = load_tensors(entry.checkpoint, CHECKPOINT)
    except (FileNotFoundError, ValueError):  # none, or a damaged one, which is begun anew
        return stage.stop - stage.start
    return stage.stop - int(meta["step"])


def plan(
    comparison: Comparison,
    run: Path,
    data: Transitions | None = None,
    *,
    trust_env: Sequence[str] = (),
) -> list[Task]:
    """What is left to do in the run folder, in order, but for learning curves. Nothing is trained,
    kept or written. data, trust_env: as for `compare`. Raises what `compare` raises before it
    trains.
    """
    comparison.require_episodes()
    known, results, shelf = _Known(), Results(run / "results.jsonl"), Shelf(trust_env, data)
    if any(task.recipe.evaluation.every is not None for task in comparison.tasks):
        plan_jobs(comparison, shelf, _quiet)
    for cell in comparison.cells():
        found, settings = shelf.of(cell.recipe), cell.recipe.evaluation
        if results.find(cell_key(cell, found.whole)) is not None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parts that have learned nothing: they have not
            planned = _Plan(cell, found.split, known, trust_env)
            policy = planned.train(with_backend=cell.backend is not None).policy
        name = _of(
            cell, f"playing {cell.extractor}" + (f" of {cell.backend}" if cell.backend else "")
        )
        if name not in known.paces:
            seconds = evaluation_seconds(
                policy,
                episodes=settings.episodes,
                parallel=settings.parallel,
                trust_env=trust_env,
            )
            known.paces[name] = seconds / settings.episodes
        known.add(name, "episodes", settings.episodes)
    return list(known.tasks.values())


def _of(cell: Cell, name: str) -> str:
    return name if cell.dataset is None else f"{cell.dataset}: {name}"
