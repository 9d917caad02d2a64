"""Run a comparison; what was trained or scored before is found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ddice.core.storage import write_json
from ddice.data import Transitions
from ddice.parts.loop import resolve_device
from ddice.runs.comparison.board import Board, Listeners
from ddice.runs.comparison.cells import Job, Shelf, plan_jobs, run_cell
from ddice.runs.comparison.executors import Process, Serial
from ddice.runs.comparison.failures import CellsFailed, cause_of, failed_before, trace_of
from ddice.runs.comparison.grid import Comparison
from ddice.runs.comparison.pool import Orders, Pool, affordable
from ddice.runs.comparison.store import Result, Results
from ddice.runs.made_with import record_made_with
from ddice.runs.status import Reporter, hold, require_free
from ddice.runs.training import CHECKPOINT_EVERY, Say


def compare(
    comparison: Comparison,
    run: str | Path,
    *,
    data: Transitions | None = None,
    progress: bool = True,
    checkpoint_every: int = CHECKPOINT_EVERY,
    say: Say = print,
    listeners: Listeners = lambda folder: (),
    trust_env: Sequence[str] = (),
    only_failed: bool = False,
) -> list[Result]:
    """All results of a comparison in the order of its cells; the run folder gets comparison.json,
    results.jsonl and a folder for each policy.

    One process at a time works in a folder: a second one is refused with OSError. listeners: made
    for the folder of each policy, and called with stage, steps done, of steps, metrics. trust_env:
    as for `ddice.evaluate` and `ddice.load_dataset`. only_failed: do nothing but what failed
    before; results of others that are there are among those returned.

    A policy that fails does not stop the others: CellsFailed comes after them. Raises ValueError,
    before anything is trained, when a backend and an extractor do not fit together, nothing is to
    be played, or no policy can have the learning curve that was asked for.
    """
    comparison.require_episodes()
    _require_readable(comparison, data)
    folder = Path(run)
    require_free(folder)
    shelf = Shelf(trust_env, data)
    jobs = plan_jobs(comparison, shelf, say)
    with hold(folder) as reporter:
        results = Results(folder / "results.jsonl")
        results.mend()
        write_json(folder / "comparison.json", comparison.model_dump(mode="json"))
        record_made_with(folder, resolve_device(comparison.recipe.device))
        for job in jobs:
            _say_other_curve(job, results.find(job.key), say)
        left = [job for job in jobs if results.find(job.key) is None]
        if only_failed:
            left = failed_before(folder, left)
        executor = comparison.executor
        workers = affordable(executor, len(left), say) if isinstance(executor, Process) else 1
        done = sum(results.find(job.key) is not None for job in jobs)
        board = Board(
            left,
            folder,
            results,
            reporter,
            of=len(jobs),
            done=done,
            workers=workers,
            say=say,
            listeners=listeners,
        )
        if isinstance(executor, Serial):
            _serial(board, shelf, reporter, progress, checkpoint_every)
        elif left:
            orders = Orders(comparison, folder, executor.threads, checkpoint_every, trust_env)
            Pool(board, orders, workers, progress).work()
    found = _in_order(jobs, results)
    if board.causes:
        causes = {job.cell.title: board.causes[job.number] for job in left if board.failed_at(job)}
        raise CellsFailed(found, causes, len(jobs), folder)
    return found


def _require_readable(comparison: Comparison, data: Transitions | None) -> None:
    """Raise ValueError for data in memory that are not those of all cells."""
    if data is None:
        return
    if comparison.datasets:
        raise ValueError("expected no data where the comparison names its datasets: leave data out")
    if not isinstance(comparison.executor, Serial):
        raise ValueError(
            "the data are in the memory of this process alone, and workers read them themselves: "
            'save them and name the file as recipe.data.source, or use the executor "serial"'
        )


def _in_order(jobs: Sequence[Job], results: Results) -> list[Result]:
    """The results that are there, by the number of their cells, under the names of today."""
    found = []
    for job in sorted(jobs, key=lambda one: one.number):
        result, cell = results.find(job.key), job.cell
        names = {"dataset": cell.dataset, "backend": cell.backend, "extractor": cell.extractor}
        if result is not None:
            found.append(result.model_copy(update=names))
    return found


def _say_other_curve(job: Job, result: Result | None, say: Say) -> None:
    asked = job.cell.recipe.evaluation.learning_curve
    if result is not None and asked is not None and asked != result.learning_curve:
        say(
            f"{job.cell.title}: found, with another learning curve than is asked for now, or "
            "without one; it is not trained again for that"
        )


def _serial(
    board: Board, shelf: Shelf, reporter: Reporter, progress: bool, checkpoint_every: int
) -> None:
    """One policy after the other, in this process."""
    for job in board.left:
        reporter.policy(f"{job.cell.title}: {board.number} of {board.of}")
        board.say(f"\n{job.cell.title}")
        board.begin(job, 0)
        try:
            result = run_cell(
                job,
                shelf.of(job.cell.recipe),
                board.place(job),
                progress=progress,
                checkpoint_every=checkpoint_every,
                say=board.say,
                on_warning=partial(board.warn, job),
                reporter=_Both(reporter, board, job),
                trust_env=shelf.trust_env,
            )
        except Exception as error:
            board.failed(job, cause_of(error), trace_of(error))
        else:
            board.done(job, result)


class _Both:
    """Tells the status and the board what one policy is at."""

    def __init__(self, reporter: Reporter, board: Board, job: Job):
        self.reporter, self.board, self.job = reporter, board, job

    def __call__(self, stage: str, step: int, steps: int, metrics: Mapping[str, Any]) -> None:
        self.reporter(stage, step, steps, metrics)
        self.board.hear(0, self.job, stage, step, steps, metrics)
