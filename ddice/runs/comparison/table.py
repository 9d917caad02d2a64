"""The table of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ddice.core import statistics
from ddice.runs.comparison.datasets import Dataset
from ddice.runs.comparison.differences import PAIRED, difference, what_seeds_tell
from ddice.runs.comparison.groups import (
    Group,
    behaviour_of,
    best_other,
    by_dataset,
    grouped,
    run_means,
)
from ddice.runs.comparison.store import Result

COLUMNS = (
    "backend",
    "extractor",
    "score, mean (std)",
    "IQM [95 %]",
    "each seed",
    "minus behaviour [95 %]",
    "minus best other [95 %]",
    "ratios' effective sample size",
    "clip rate",
    "decisions/s",
)


def render_table(results: Sequence[Result]) -> str:
    """A Markdown table: mean score of the seeds with its sample deviation, IQM over seeds with a
    95 % bootstrap interval, each seed, paired differences, diagnostics. One for each dataset, where
    there are several.
    """
    tables = {name: _table(rows) for name, rows in by_dataset(results).items()}
    titled = [text if name is None else f"**{name}**\n\n{text}" for name, text in tables.items()]
    return "\n\n".join(titled)


def render_published(datasets: Mapping[str, Dataset]) -> str:
    """A Markdown table of what others published on these datasets; empty where that is nothing."""
    rows = [
        _line((name, method, f"{score:.1f}", dataset.published_by))
        for name, dataset in datasets.items()
        for method, score in dataset.published.items()
    ]
    head = ("dataset", "method", "published score", "in")
    return "\n".join([_line(head), "|" + "---|" * len(head), *rows]) if rows else ""


def _table(results: Sequence[Result]) -> str:
    groups = grouped(results)
    lines = [_line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    lines += [_line(_row(group, groups)) for group in groups]
    evaluation = results[0].evaluation
    lines += [
        "",
        f"Scores: {evaluation.label}; {len(evaluation.returns)} episodes per seed in "
        f"{evaluation.env_id}, last checkpoint.",
    ]
    if len(groups) > 1:
        lines += [f"{PAIRED} {what_seeds_tell(max(map(len, groups.values())))}"]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _row(group: Group, groups: dict[Group, list[Result]]) -> list[str]:
    """The cells of one policy."""
    results = groups[group]
    scores = run_means(results)
    mean, interval = f"{scores.mean():.1f}", ""
    if len(results) > 1:  # one seed says nothing about the spread
        mean += f" ({scores.std(ddof=1):.1f})"
        low, high = statistics.stratified_interval(scores, statistics.iqm)
        interval = f"{statistics.iqm(scores):.1f} [{low:.1f}, {high:.1f}]"
    sizes = [
        result.diagnostics["effective_sample_size"]
        for result in results
        if "effective_sample_size" in result.diagnostics
    ]
    timed = [result.evaluation for result in results if result.evaluation.policy_seconds]
    speeds = [evaluation.decisions_per_second for evaluation in timed]
    clipped = [result.clip_rate for result in results if not result.foreign]
    behaviour, other = behaviour_of(groups), best_other(groups, group)
    return [
        group[0] or "",
        group[1],
        mean,
        interval,
        " ".join(f"{score:.1f}" for score in scores[:, 0]),
        "" if results is behaviour else _minus(results, behaviour),
        "" if other is None else _minus(results, groups[other]),
        f"{np.mean(sizes):.2f}" if sizes else "",
        f"{np.mean(clipped):.2f}" if clipped else "",
        f"{np.median(speeds):.0f}" if speeds else "",
    ]


def _minus(first: Sequence[Result], second: Sequence[Result]) -> str:
    found = difference(first, second)
    return "" if found is None else str(found)
