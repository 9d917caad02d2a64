"""How long the rest of a comparison takes, from the steps and episodes done so far."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ddice.runs.comparison.cells import Job

Unit = tuple[str, ...]  # a stage, and whose: what is trained once for several policies is one unit
Kind = tuple[str, ...]  # of stages that take as long as each other


def unit_of(job: Job, stage: str) -> Unit:
    """What a stage of a cell trains."""
    cell = job.cell
    shared = (stage, str(cell.dataset), str(cell.seed))
    if stage == "prior":
        return shared
    if stage == "backend":
        return *shared, str(cell.backend)
    return *shared, str(cell.backend), cell.extractor


def _kind(job: Job, stage: str) -> Kind:
    dataset, *rest = unit_of(job, stage)[1:]
    return (stage, dataset, *rest[1:])  # whatever the seed


def _counts(job: Job) -> dict[str, int]:
    """Steps, and episodes, of the stages of a cell."""
    recipe, steps = job.cell.recipe, job.cell.recipe.steps
    found = {"evaluation": recipe.evaluation.episodes}
    if recipe.extractor.needs_prior:
        found["prior"] = steps.prior
    if job.cell.backend is None:
        return found
    if recipe.schedule == "joint":
        return found | {"joint": steps.backend}
    found["backend"] = steps.backend
    if recipe.extractor.needs_ratio:
        found["extractor"] = steps.extractor
    return found


class Outlook:
    """Counts what is left of all units, and measures the pace of every kind of them."""

    def __init__(self, jobs: Sequence[Job]):
        self._left: dict[Unit, int] = {}
        self._kinds: dict[Unit, Kind] = {}
        for job in jobs:
            for stage, count in _counts(job).items():
                unit = unit_of(job, stage)
                self._left[unit], self._kinds[unit] = count, _kind(job, stage)
        self._seconds: dict[Kind, float] = {}
        self._steps: dict[Kind, int] = {}
        self._last: dict[int, tuple[Unit, int, float]] = {}  # of each worker

    def hear(self, worker: int, job: Job, stage: str, step: int, steps: int) -> None:
        """A worker is at a step of a stage."""
        now, unit = time.monotonic(), unit_of(job, stage)
        kind = _kind(job, stage)
        self._kinds[unit], self._left[unit] = kind, steps - step
        last = self._last.get(worker)
        if last is not None and last[0] == unit and step > last[1]:
            self._seconds[kind] = self._seconds.get(kind, 0.0) + now - last[2]
            self._steps[kind] = self._steps.get(kind, 0) + step - last[1]
        self._last[worker] = unit, step, now

    def over(self, job: Job) -> None:
        """Nothing is left of a cell, nor of what it was trained from."""
        for stage in _counts(job):
            self._left[unit_of(job, stage)] = 0

    def seconds_left(self, workers: int) -> float | None:
        """None as long as nothing was measured. Stages that nobody was at yet count with the mean
        pace of the others.
        """
        if not self._steps:
            return None
        paces = {kind: self._seconds[kind] / steps for kind, steps in self._steps.items()}
        training = [pace for kind, pace in paces.items() if kind[0] != "evaluation"]
        playing = [pace for kind, pace in paces.items() if kind[0] == "evaluation"]
        total = 0.0
        for unit, left in self._left.items():
            alike = playing if unit[0] == "evaluation" else training
            mean = sum(alike) / len(alike) if alike else 0.0
            total += left * paces.get(self._kinds[unit], mean)
        return total / max(1, min(workers, sum(left > 0 for left in self._left.values())))
