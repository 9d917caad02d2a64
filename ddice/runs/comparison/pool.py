"""Worker processes at the jobs of a comparison: who gets which, and what if one of them dies."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddice.core.machine import cores, memory_available, peak_memory
from ddice.core.reading import parse_json
from ddice.parts.loop import Terminated
from ddice.runs.comparison import worker as told
from ddice.runs.comparison.board import Board
from ddice.runs.comparison.cells import Job
from ddice.runs.comparison.executors import Process
from ddice.runs.comparison.grid import Comparison
from ddice.runs.comparison.outlook import Unit, unit_of
from ddice.runs.comparison.store import Result
from ddice.runs.training import Say

MOST_DEATHS = 3  # of workers at one policy, before it counts as failed
PATIENCE = 60.0  # seconds in which a worker that is asked to end saves what it trains
TAIL = 2000  # characters of what a worker that died has printed
# Of the driver's own peak: it has read the same data, and trained nothing.
MARGIN = 1.25
# The path comes first, so that a worker finds what this process does, and nothing else.
START = (
    "import sys; sys.path[:] = sys.argv[1:]; from ddice.runs.comparison.worker import main; main()"
)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def affordable(executor: Process, jobs: int, say: Say) -> int:
    """How many workers there are to be; says where memory is too short for what was asked."""
    asked = min(jobs, executor.workers or max(1, cores() // executor.threads))
    free, own = memory_available(), peak_memory()
    if free is None or own is None or asked <= 1:
        return asked
    each = int(MARGIN * own)
    fits = max(1, free // each)
    if fits >= asked:
        return asked
    numbers = f"each takes about {each / 2**30:.1f} GB, and {free / 2**30:.1f} GB are free"
    if executor.workers is not None:
        say(f"memory may be too short for {asked} workers: {numbers}")
        return asked
    say(f"memory for {fits} of {asked} workers: {numbers}")
    return fits


class Orders:
    """What every worker of a comparison is told first."""

    def __init__(
        self,
        comparison: Comparison,
        folder: Path,
        threads: int,
        checkpoint_every: int,
        trust_env: Sequence[str],
    ):
        self.threads = threads
        self.content = {
            "comparison": comparison.model_dump(mode="json"),
            "folder": str(folder.resolve()),
            "threads": threads,
            "checkpoint_every": checkpoint_every,
            "trust_env": list(trust_env),
        }


@dataclass
class _Hand:
    """A worker process, and what it is at."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    ready: bool = False
    job: Job | None = None

    def order(self, content: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died, which its reader says
            self.process.stdin.write(json.dumps(content).encode() + b"\n")
            self.process.stdin.flush()


@dataclass
class _Queue:
    """Jobs that nobody is at; `blocked` are those that need what somebody trains at this moment."""

    pending: deque[Job]
    blocked: deque[tuple[Job, str]] = field(default_factory=deque)
    leading: list[Job] = field(default_factory=list)  # whose curves are not drawn yet

    def take(self) -> tuple[Job, str] | None:
        """A job, and the stage to wait for, "" for none; None where everything has to wait."""
        for job in self.pending:
            if not self._led(job):
                self.pending.remove(job)
                return job, ""
        return self.blocked.popleft() if self.blocked else None

    def _led(self, job: Job) -> bool:
        """Whether a policy that is played while the same backend trains has to come first."""
        own = unit_of(job, "backend")
        return not job.leads and any(unit_of(one, "backend") == own for one in self.leading)

    def block(self, job: Job, stage: str) -> None:
        """Set a job aside with all that need the same."""
        unit = unit_of(job, stage)
        same = [one for one in self.pending if self._needs(one, stage, unit)]
        for one in same:
            self.pending.remove(one)
        self.blocked.extend((one, stage) for one in (job, *same))

    def _needs(self, job: Job, stage: str, unit: Unit) -> bool:
        reads = stage == "prior" or (stage == "backend" and job.cell.backend is not None)
        return reads and unit_of(job, stage) == unit

    def free(self) -> None:
        """Something was trained: try those that were set aside before the others."""
        self.pending.extendleft(job for job, _ in reversed(self.blocked))
        self.blocked.clear()


class Pool:
    """Executes the jobs of a board with workers."""

    def __init__(self, board: Board, orders: Orders, workers: int, progress: bool):
        self.board = board
        self.orders = orders
        self.count = workers
        self.queue = _Queue(deque(board.left), leading=[j for j in board.left if j.leads])
        self.inbox: queue.SimpleQueue[tuple[_Hand, bytes]] = queue.SimpleQueue()
        self.hands: dict[int, _Hand] = {}
        self.deaths: dict[int, int] = {}
        self.bar = tqdm(
            total=len(board.left), unit="policy", disable=not progress, dynamic_ncols=True
        )

    def work(self) -> None:
        """Until every job is done or failed."""
        with _terminating(), self.bar:
            try:
                for number in range(self.count):
                    self._start(number)
                while self.board.over < len(self.board.left):
                    hand, line = self.inbox.get()
                    if self.hands.get(hand.number) is hand:
                        self._hear(hand, line)
            finally:
                self._end()

    def _start(self, number: int) -> None:
        log = self.board.folder / f".worker-{number}.log"
        threads = dict.fromkeys(THREADS, str(self.orders.threads))
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", START, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **threads},
                start_new_session=True,  # Ctrl-C is for this process, which asks its workers to end
            )
        hand = self.hands[number] = _Hand(number, process, log)
        threading.Thread(target=self._read, args=(hand,), daemon=True).start()
        hand.order(self.orders.content)

    def _read(self, hand: _Hand) -> None:
        assert hand.process.stdout is not None
        for line in hand.process.stdout:
            self.inbox.put((hand, line))
        self.inbox.put((hand, b""))

    def _hear(self, hand: _Hand, line: bytes) -> None:
        if not line:
            self._bury(hand)
            return
        kind, content = parse_json(line)
        job, board = hand.job, self.board
        if kind == told.READY:
            hand.ready = True
            self._employ(hand)
        elif job is None:
            pass
        elif kind == told.STEP:
            board.hear(hand.number, job, *content)
            self._show()
        elif kind in (told.SAY, told.WARN):
            self._say(f"{job.cell.title}: {content.strip()}", kind == told.WARN)
        elif kind == told.ALARM:
            board.warn(job, content)
        elif kind == told.BUSY:
            self.queue.block(job, content)
            self._employ(hand)
        else:
            if kind == told.DONE:
                board.done(job, Result.model_validate(content))
            else:
                board.failed(job, *content)
            self._over(job)
            self._employ(hand)

    def _over(self, job: Job) -> None:
        self.bar.update()
        self.queue.leading = [one for one in self.queue.leading if one is not job]
        self.queue.free()
        for hand in self.hands.values():
            if hand.ready and hand.job is None:
                self._employ(hand)

    def _employ(self, hand: _Hand) -> None:
        """Give a worker something to do, if there is anything."""
        found = self.queue.take()
        hand.job = None
        if found is None:
            self.board.leave(hand.number)
            return
        job, stage = found
        hand.job = job
        self.board.begin(job, hand.number)
        curve = job.cell.recipe.evaluation.every is not None
        order = {"number": job.number, "key": job.key, "curve": curve, "wait_for": [stage]}
        hand.order(order)

    def _bury(self, hand: _Hand) -> None:
        """A worker died: another one takes its place, and its job is done again from its last
        checkpoint.
        """
        how = _how(hand)
        self.board.leave(hand.number)
        job = hand.job
        if job is None and not hand.ready:
            raise RuntimeError(f"a worker could not start: {how}")
        if job is not None:
            deaths = self.deaths[job.number] = self.deaths.get(job.number, 0) + 1
            if deaths < MOST_DEATHS:
                self._say(f"{job.cell.title}: its worker {how}; it goes on in another one", False)
                self.queue.pending.appendleft(job)
            else:
                self.board.failed(job, f"{deaths} workers died of it, the last one {how}", "")
                self._over(job)
        self._start(hand.number)

    def _say(self, text: str, warning: bool) -> None:
        self.bar.clear()
        if warning:
            warnings.warn(text, UserWarning, stacklevel=2)
        else:
            self.board.say(text)
        self.bar.refresh()

    def _show(self) -> None:
        left = self.board.seconds_left
        if left is not None:
            self.bar.set_postfix_str(f"about {left / 60:.0f} min left", refresh=False)
        self.bar.update(0)

    def _end(self) -> None:
        """Ask all workers to end, which save what they train; kill those that do not."""
        for hand in self.hands.values():
            with contextlib.suppress(OSError):
                assert hand.process.stdin is not None
                hand.process.stdin.close()
        deadline = time.monotonic() + PATIENCE
        for hand in self.hands.values():
            try:
                hand.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                hand.process.kill()
                hand.process.wait()
            if not hand.log.stat().st_size:
                hand.log.unlink()


def _how(hand: _Hand) -> str:
    """How a worker died, for people."""
    code = hand.process.wait()
    printed = hand.log.read_text(errors="replace")[-TAIL:].strip()
    about = f", after it had printed: {printed}" if printed else ""
    if code >= 0:
        return f"ended with status {code}{about}"
    name = signal.Signals(-code).name
    short = " (as the system does where memory is short)" if name == "SIGKILL" else ""
    return f"was killed by {name}{short}{about}"


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does: its workers save what they train."""

    def terminate(number: int, frame: Any) -> None:
        raise Terminated("stopped; run the same command again to go on")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
