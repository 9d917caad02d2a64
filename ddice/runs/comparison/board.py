"""Who keeps track of a comparison: results, failures, the time left, and what others may read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddice.parts.loop import Listener
from ddice.runs.comparison.cells import Job
from ddice.runs.comparison.failures import write_failure
from ddice.runs.comparison.outlook import Outlook
from ddice.runs.comparison.store import Result, Results
from ddice.runs.status import GridStatus, Reporter, WorkerStatus
from ddice.runs.training import Say

Listeners = Callable[[Path], Sequence[Listener]]


class Board:
    """Told of everything by whoever executes the jobs that are left; of all, `of`, some were
    `done` before.
    """

    def __init__(
        self,
        left: Sequence[Job],
        folder: Path,
        results: Results,
        reporter: Reporter,
        of: int,
        done: int,
        workers: int,
        say: Say,
        listeners: Listeners,
    ):
        self.left = list(left)
        self.folder = folder
        self.of = of
        self.say = say
        self.causes: dict[int, str] = {}  # of failures, by the number of the cell
        self.outlook = Outlook(left)
        self.workers = workers
        self._results = results
        self._reporter = reporter
        self._before = done
        self._scored = 0
        self._make_listeners = listeners
        self._listeners: dict[int, Sequence[Listener]] = {}
        self._at: dict[int, WorkerStatus] = {}
        self._first: dict[int, tuple[int, float]] = {}  # step and time of the first word of a stage
        self._tell(now=True)

    @property
    def over(self) -> int:
        """How many of those that were left are done or failed."""
        return len(self.causes) + self._scored

    @property
    def number(self) -> int:
        """Of the policy that is next, where they come one after the other."""
        return self._before + self.over + 1

    def place(self, job: Job) -> Path:
        """The folder of a policy."""
        return self.folder / job.cell.folder

    def failed_at(self, job: Job) -> bool:
        """Whether this policy failed."""
        return job.number in self.causes

    def begin(self, job: Job, worker: int) -> None:
        """A worker is at this job from now on."""
        if job.number not in self._listeners:
            self._listeners[job.number] = self._make_listeners(self.place(job))
        self._at[worker] = WorkerStatus(policy=job.cell.title)
        self._tell()

    def hear(
        self, worker: int, job: Job, stage: str, step: int, steps: int, metrics: Mapping[str, Any]
    ) -> None:
        """A worker is at a step of a stage."""
        self.outlook.hear(worker, job, stage, step, steps)
        # tools that plot metrics know nothing of episodes
        for listener in self._listeners[job.number] if stage != "evaluation" else ():
            listener(stage, step, steps, metrics)
        now = time.monotonic()
        if self._at[worker].stage != stage:
            self._first[worker] = step, now
        first, then = self._first[worker]
        left = (now - then) / (step - first) * (steps - step) if step > first else None
        self._at[worker] = WorkerStatus(
            policy=job.cell.title, stage=stage, step=step, steps=steps, seconds_left=left
        )
        self._tell()

    def leave(self, worker: int) -> None:
        """A worker is at nothing any more."""
        self._at.pop(worker, None)
        self._tell()

    def done(self, job: Job, result: Result) -> None:
        """A policy was scored."""
        self._results.append(result)
        self._scored += 1
        self.outlook.over(job)
        self._tell(now=True)

    def failed(self, job: Job, cause: str, trace: str) -> None:
        """A policy failed, and the rest goes on."""
        self.causes[job.number] = cause
        write_failure(self.folder, job, cause, trace)
        self.outlook.over(job)
        self.say(f"{job.cell.title}: failed, and the others go on: {cause}")
        self._tell(now=True)

    def warn(self, job: Job, text: str) -> None:
        """The alarms of a stage ask for something."""
        self._reporter.warn(text if self.workers == 1 else f"{job.cell.title}: {text}")

    @property
    def seconds_left(self) -> float | None:
        """Of all that is left."""
        return self.outlook.seconds_left(self.workers)

    def _tell(self, now: bool = False) -> None:
        workers = {str(number): status for number, status in sorted(self._at.items())}
        grid = GridStatus(
            done=self._before + self._scored,
            failed=len(self.causes),
            of=self.of,
            seconds_left=self.seconds_left,
            workers=workers if self.workers > 1 else {},
        )
        self._reporter.grid(grid, now)
