"""The tables of a report as text: what stands in a cell, and how it is sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ddice.core import statistics
from ddice.runs.comparison.curves_plot import ScoreCurve
from ddice.runs.comparison.differences import Difference, difference, over_tasks
from ddice.runs.comparison.grid import BEHAVIOUR
from ddice.runs.comparison.groups import Group, behaviour_of, best_other, run_means
from ddice.runs.comparison.store import Result
from ddice.runs.report.material import Task

TARGET = 100.0  # of the optimality gap: the reference's expert


@dataclass(frozen=True)
class Cell:
    """Text, by what it is sorted (the text itself unless said), and whether it stands out."""

    text: str
    order: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Columns by name, with what they say where the name is not enough; `repeats` has the command
    of each row.
    """

    columns: dict[str, str]
    rows: list[list[Cell]] = field(default_factory=list)
    repeats: list[str] = field(default_factory=list)


NOTHING = Cell("")


def number(value: float | None, digits: int = 1) -> Cell:
    """A number, or nothing."""
    if value is None or not np.isfinite(value):
        return NOTHING
    return Cell(f"{value:.{digits}f}", value)


def estimate(value: float, interval: tuple[float, float] | None, digits: int = 1) -> Cell:
    """A number with its interval."""
    text = f"{value:.{digits}f}"
    if interval is not None:
        text += f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    return Cell(text, value)


def of_difference(found: Difference | None) -> Cell:
    return NOTHING if found is None else Cell(str(found), found.mean)


def is_ahead(groups: dict[Group, list[Result]], group: Group) -> bool:
    """The paired intervals say that it is better than every other policy."""
    others = [rows for other, rows in groups.items() if other != group]
    found = [difference(groups[group], rows) for rows in others]
    return bool(found) and all(one is not None and one.is_above for one in found)


def score_table(task: Task, curves: Sequence[ScoreCurve], repeats: Sequence[str]) -> Table:
    """The policies of one task."""
    with_success = any(
        row.evaluation.successes is not None for rows in task.groups.values() for row in rows
    )
    columns = {
        "backend": "",
        "extractor": "",
        "score": "mean over seeds of the mean score, last checkpoint; sample deviation over seeds",
        "IQM": "interquartile mean over seeds, 95 % stratified bootstrap",
        "each seed": "mean score of each",
        "minus behaviour": "paired by seed on the same episodes, Student's 95 % interval",
        "minus best other": "the same, to the other policy of the highest mean",
    }
    if with_success:
        columns["success, %"] = "share of all episodes, Wilson's 95 % interval over episodes"
    if curves:
        columns["best seen"] = (
            "largest score on the learning curve of each seed, mean: chosen after the fact, on few "
            "episodes; not comparable with the score"
        )
    columns["ms a decision"] = "time in policy.act over all decisions, as the episodes batched them"
    columns["training, s"] = "sum over seeds; parts that were found trained cost nothing here"
    table = Table(columns, repeats=list(repeats))
    for group, rows in task.groups.items():
        cells = _scores(task, group, rows)
        if with_success:
            cells.append(success(rows))
        if curves:
            cells.append(number(_best_seen(curves, group)))
        seconds = [row.train_seconds for row in rows if not row.foreign]
        cells += [number(latency(rows), 2), number(sum(seconds) if seconds else None, 0)]
        table.rows.append(cells)
    return table


def _scores(task: Task, group: Group, rows: Sequence[Result]) -> list[Cell]:
    scores = run_means(rows)
    mean, interval = f"{scores.mean():.1f}", None
    if len(rows) > 1:
        mean += f" ({scores.std(ddof=1):.1f})"
        interval = statistics.stratified_interval(scores, statistics.iqm)
    behaviour, other = behaviour_of(task.groups), best_other(task.groups, group)
    is_behaviour = group == (None, BEHAVIOUR)
    return [
        Cell(group[0] or ""),
        Cell(group[1]),
        Cell(mean, float(scores.mean()), is_ahead(task.groups, group)),
        estimate(statistics.iqm(scores), interval),
        Cell(" ".join(f"{score:.1f}" for score in scores[:, 0]), float(scores.mean())),
        NOTHING if is_behaviour else of_difference(difference(rows, behaviour)),
        NOTHING if other is None else of_difference(difference(rows, task.groups[other])),
    ]


def success(rows: Sequence[Result]) -> Cell:
    """Of all episodes of all seeds, in per cent."""
    seen = [one for row in rows for one in row.evaluation.successes or ()]
    if not seen:
        return NOTHING
    low, high = statistics.wilson_interval(sum(seen), len(seen))
    share = 100 * sum(seen) / len(seen)
    return Cell(f"{share:.0f} [{100 * low:.0f}, {100 * high:.0f}]", share)


def latency(rows: Sequence[Result]) -> float | None:
    """Milliseconds of a decision, the median of the seeds; None where nobody measured them."""
    timed = [row.evaluation for row in rows if row.evaluation.policy_seconds]
    if not timed:
        return None
    return 1000 / float(np.median([evaluation.decisions_per_second for evaluation in timed]))


def _best_seen(curves: Sequence[ScoreCurve], group: Group) -> float | None:
    found = [curve for curve in curves if (curve.backend, curve.extractor) == group]
    return float(found[-1].scores.max(1).mean()) if found else None


@dataclass(frozen=True)
class Aggregate:
    """A policy over tasks: scores (runs, tasks), of the seeds that all tasks have."""

    group: Group
    scores: np.ndarray


def comparable(tasks: Sequence[Task]) -> list[Task]:
    """Tasks whose scores can be averaged: all normalised ones, else the only one."""
    normalised = [task for task in tasks if task.is_normalised]
    return normalised or list(tasks if len(tasks) == 1 else [])


def aggregates(tasks: Sequence[Task]) -> list[Aggregate]:
    """Of every policy that all tasks have."""
    if not tasks:
        return []
    found = []
    for group in tasks[0].groups:
        if not all(group in task.groups for task in tasks):
            continue
        by_task = [{row.seed: row for row in task.groups[group]} for task in tasks]
        seeds = [seed for seed in by_task[0] if all(seed in rows for rows in by_task)]
        if seeds:
            columns = [run_means([rows[seed] for seed in seeds]) for rows in by_task]
            found.append(Aggregate(group, np.concatenate(columns, axis=1)))
    return found


def gap(scores: np.ndarray) -> float:
    """The optimality gap to the reference's expert."""
    return statistics.optimality_gap(scores, TARGET)


def aggregate_statistics(tasks: Sequence[Task]) -> dict[str, statistics.Statistic]:
    """Those that say something about these tasks, by name."""
    found: dict[str, statistics.Statistic] = {
        "IQM": statistics.iqm,
        "median": statistics.median,
        "mean": statistics.mean,
    }
    if tasks and all(task.is_normalised for task in tasks):
        found["optimality gap"] = gap
    return found


def aggregate_table(tasks: Sequence[Task], repeat: str) -> Table:
    """Policies over all these tasks, with rliable's aggregates."""
    policies, named = aggregates(tasks), aggregate_statistics(tasks)
    hint = "95 % stratified bootstrap over seeds"
    chance = "probability that a run beats one of the behaviour policy, on the average task"
    columns = {"backend": "", "extractor": "", **dict.fromkeys(named, hint)}
    columns["P(better than behaviour)"] = f"{chance}; {hint}"
    columns["minus behaviour"] = "mean over tasks, paired, Student's 95 % interval over seeds"
    columns["minus best other"] = "the same, to the other policy of the highest mean over tasks"
    table = Table(columns)
    behaviour = next((one for one in policies if one.group == (None, BEHAVIOUR)), None)
    for policy in policies:
        others = [one for one in policies if one is not policy]
        ahead = [_over(tasks, policy, one) for one in others]
        strong = bool(ahead) and all(one is not None and one.is_above for one in ahead)
        best = max(others, key=lambda one: one.scores.mean(), default=None)
        cells = [Cell(policy.group[0] or ""), Cell(policy.group[1])]
        for name, statistic in named.items():
            cell = estimate(statistic(policy.scores), _interval(policy.scores, statistic))
            cells.append(Cell(cell.text, cell.order, strong and name == "mean"))
        against = None if policy is behaviour else behaviour
        cells += [
            NOTHING if against is None else _chance(policy, against),
            NOTHING if against is None else of_difference(_over(tasks, policy, against)),
            NOTHING if best is None else of_difference(_over(tasks, policy, best)),
        ]
        table.rows.append(cells)
        table.repeats.append(repeat)
    return table


def _interval(scores: np.ndarray, statistic: statistics.Statistic) -> tuple[float, float] | None:
    return statistics.stratified_interval(scores, statistic) if len(scores) > 1 else None


def _over(tasks: Sequence[Task], first: Aggregate, second: Aggregate) -> Difference | None:
    return over_tasks([(task.groups[first.group], task.groups[second.group]) for task in tasks])


def _chance(policy: Aggregate, behaviour: Aggregate) -> Cell:
    value = statistics.probability_of_improvement(policy.scores, behaviour.scores)
    if len(policy.scores) < 2:
        return number(value, 2)
    interval = statistics.improvement_interval(policy.scores, behaviour.scores)
    return estimate(value, interval, 2)
