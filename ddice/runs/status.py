"""Run folders in use: one process at a time, and what it is doing, for others to read."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from pydantic import Field, ValidationError

from ddice.core.config import Config
from ddice.core.locks import NO_LOCKS
from ddice.core.reading import plain_text, read_json
from ddice.core.storage import content_digest, write_json
from ddice.runs.alarms.report import LABELS

EVERY = 1.0  # seconds between two writes within a stage
GRACE = 0.5  # seconds to wait for a lock: those who read the status hold it for an instant
FILE, LOCK, MARKER = ".status.json", ".lock", ".lock.marker"
DIGEST = "digest"  # of all else in the file
LIMIT = 1 << 20  # bytes of a status
ENDS = (KeyboardInterrupt, SystemExit)


class WorkerStatus(Config):
    """What a worker process of a comparison is doing; `seconds_left` is of the stage."""

    policy: str
    stage: str = ""
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None


class GridStatus(Config):
    """How far a comparison is, in policies; `workers` by their numbers, where it has any."""

    done: int
    failed: int
    of: int
    seconds_left: float | None = None
    workers: dict[str, WorkerStatus] = Field(default_factory=dict)


class Status(Config):
    """What the process in a run folder is doing, or how it ended. Times are in seconds since
    1970; `seconds_left` is of the stage.
    """

    state: Literal["running", "finished", "stopped", "failed", "killed"]
    pid: int
    started: float
    updated: float
    policy: str = Field("", description="which policy of a comparison")
    stage: str = ""
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    warnings: tuple[str, ...] = Field((), description="what the alarms of trained stages ask for")
    earlier: dict[str, int] = Field(
        default_factory=dict, description="the steps of metrics that are not of this step"
    )
    message: str = ""
    grid: GridStatus | None = Field(None, description="of a comparison")


class Reporter:
    """Writes the status of the process that holds a run folder. Called with a stage, steps done,
    of steps, and metrics: a listener of the loop.
    """

    def __init__(self, folder: Path):
        now = time.time()
        self.folder = folder
        self.status = Status(state="running", pid=os.getpid(), started=now, updated=now)
        # paces and pauses are measured on a clock that nobody sets
        self._first_step, self._first_time = 0, time.monotonic()
        self._written = 0.0
        self._write()

    def policy(self, name: str) -> None:
        """What follows is about another policy of a comparison."""
        nothing: dict[str, Any] = {"stage": "", "step": 0, "steps": 0, "metrics": {}, "earlier": {}}
        self._change(policy=name, seconds_left=None, warnings=(), **nothing)
        self._write()

    def grid(self, grid: GridStatus, now: bool = False) -> None:
        """How far the comparison is; written `now`, or with what comes next."""
        self._change(grid=grid)
        if now or time.monotonic() - self._written >= EVERY:
            self._write()

    def warn(self, text: str) -> None:
        """A stage is trained, and its alarms ask for something."""
        self._change(warnings=(*self.status.warnings, text))
        self._write()

    def __call__(self, stage: str, step: int, steps: int, metrics: Mapping[str, Any]) -> None:
        now = time.monotonic()
        fresh = stage != self.status.stage
        # The pace of this process only: a resumed stage did its first steps at another time.
        if fresh:
            self._first_step, self._first_time = step, now
        done = step - self._first_step
        left = (now - self._first_time) / done * (steps - step) if done > 0 else None
        # What is measured at some steps only, such as a score, stays until it is measured again.
        before = {} if fresh else self.status.metrics
        earlier = {
            name: self.status.earlier.get(name, self.status.step)
            for name in before
            if name not in metrics
        }
        self._change(
            stage=stage,
            step=step,
            steps=steps,
            seconds_left=left,
            metrics={**before, **metrics},
            earlier=earlier,
        )
        if fresh or step == steps or now - self._written >= EVERY:
            self._write()

    def end(self, state: Literal["finished", "stopped", "failed"], message: str = "") -> None:
        """The last word."""
        grid = self.status.grid
        if grid is not None:
            grid = grid.model_copy(update={"seconds_left": None, "workers": {}})
        self._change(state=state, message=message, seconds_left=None, grid=grid)
        self._write()

    def _change(self, **fields: Any) -> None:
        self.status = self.status.model_copy(update={**fields, "updated": time.time()})

    def _write(self) -> None:
        self._written = time.monotonic()
        content = self.status.model_dump(mode="json")
        # Atomic, so that nobody reads half of a status.
        write_json(self.folder / FILE, {**content, DIGEST: content_digest(content)})


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[Reporter]:
    """Hold a run folder, which is made where it is missing; the operating system lets go of it when
    the process dies, however that happens.

    Raises OSError when another process holds it, naming that process, or when the folder cannot be
    written.
    """
    lock = _locked(folder)
    reporter = None
    try:
        reporter = Reporter(folder)
        yield reporter
    except BaseException as error:
        if reporter is not None:
            with contextlib.suppress(OSError):  # of a full disk: the error itself is what matters
                reporter.end("stopped" if isinstance(error, ENDS) else "failed", str(error))
        raise
    else:
        # The last word comes before the lock goes: "running" in a free folder means killed.
        reporter.end("finished")
    finally:
        lock.release()


def require_free(folder: Path) -> None:
    """Raise OSError when another process holds the folder: for those who load data first, and
    hold it only then. Nothing is made.
    """
    if (folder / LOCK).exists() or (folder / MARKER).exists():
        _locked(folder).release()


def _locked(folder: Path) -> BaseFileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _acquired(folder, GRACE)
    except Timeout:
        other = _read(folder)
        who = "another process"
        if other is not None:
            who = f"process {other.pid}, which is at {_place(other)}"
        stale = ""
        if (folder / MARKER).exists():
            stale = f" If that process is no longer there, delete {folder / MARKER}."
        raise OSError(
            f"the run folder {folder} is in use by {who}: wait for it, or give another --run. "
            f"See ddice status {folder}{stale}"
        ) from None
    except OSError as error:
        raise OSError(
            f"cannot write into the run folder {folder} ({error}): give another --run"
        ) from error


def _acquired(folder: Path, timeout: float, say: bool = True) -> BaseFileLock:
    """The lock of a folder, held; on a file system without locks a file that marks it as taken,
    which is said. Raises Timeout while somebody else holds it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=timeout, poll_interval=GRACE / 20)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if say:
            warnings.warn(
                f"the file system of {folder} has no locks ({error.strerror}): while it is in use "
                f"the file {folder / MARKER} says so; a process that is killed may leave it behind",
                UserWarning,
                stacklevel=4,
            )
    else:
        return lock
    marker = SoftFileLock(folder / MARKER)
    marker.acquire(timeout=timeout, poll_interval=GRACE / 20)
    return marker


def read_status(folder: Path) -> Status:
    """What is going on in a run folder. Raises FileNotFoundError where nothing ever ran, ValueError
    for a status that cannot be read or is not as it was written.
    """
    status = _read(folder)
    if status is None and os.path.lexists(folder / FILE):
        raise ValueError(
            f"{folder / FILE} is damaged, so nobody knows what is going on there; checkpoints and "
            "policies are other files: run the same command again to go on"
        )
    if status is None:
        raise FileNotFoundError(
            f"{folder} holds no run: expected a folder that was given as --run to ddice train "
            "or ddice compare"
        )
    # A process that ends between the two looks seems killed until somebody looks again.
    if status.state != "running" or _held(folder):
        return status
    return status.model_copy(update={"state": "killed", "seconds_left": None})


def describe(status: Status) -> str:
    """For people: what the file says, without anything that a terminal would act on."""
    ago = _duration(time.time() - status.updated)
    first = {
        "running": f"running (process {status.pid}), last word {ago} ago",
        "finished": f"finished {ago} ago",
        "stopped": f"stopped {ago} ago: {status.message or 'run the same command again to go on'}",
        "failed": f"failed {ago} ago: {status.message}",
        "killed": f"no longer running, last word {ago} ago: run the same command again to go on",
    }[status.state]
    lines = [first, *_grid_lines(status)]
    if status.policy:
        lines.append(f"{'policy':12}{status.policy}")
    if status.stage:
        left = "" if status.seconds_left is None else f", {_duration(status.seconds_left)} left"
        lines.append(f"{'stage':12}{_place(status)}{left}")
    lines += [_metric(status, name) for name in status.metrics if name not in LABELS]
    lines += [f"{'warning':12}{text}" for text in status.warnings]
    return "\n".join(plain_text(line) for line in lines)


def _grid_lines(status: Status) -> Iterator[str]:
    grid = status.grid
    if grid is None:
        return
    failed = f", {grid.failed} failed" if grid.failed else ""
    left = "" if grid.seconds_left is None else f", {_duration(grid.seconds_left)} left"
    yield f"{'policies':12}{grid.done} of {grid.of} done{failed}{left}"
    for number, worker in grid.workers.items():
        at = f": {_place(worker)}" if worker.stage else ""
        yield f"{f'worker {number}':12}{worker.policy}{at}"


def _metric(status: Status, name: str) -> str:
    value = status.metrics[name]
    shown = f"{value:.4g}" if isinstance(value, float) else f"{value}"
    at = f"  at step {status.earlier[name]:,}" if name in status.earlier else ""
    return f"{name:32}{shown}{at}"


def _place(status: Status | WorkerStatus) -> str:
    if not status.stage:
        return "its start"
    return f"{status.stage}, step {status.step:,} of {status.steps:,}"


def _duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds / 3600:.1f} h"


def _read(folder: Path) -> Status | None:
    """None for what is missing or damaged; those of earlier versions have no digest."""
    try:
        content = read_json(folder / FILE, LIMIT)
        digest = content.pop(DIGEST, None) if isinstance(content, dict) else None
        if digest not in (None, content_digest(content)):
            return None
        return Status.model_validate(content)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, ValidationError):
        return None


def _held(folder: Path) -> bool:
    try:
        lock = _acquired(folder, 0, say=False)
    except OSError:  # held, or a folder of somebody else, who is to be believed
        return True
    lock.release()
    return False
