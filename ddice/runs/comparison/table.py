"""The table of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ddice.core import statistics
from ddice.runs.comparison.datasets import Dataset
from ddice.runs.comparison.groups import by_dataset, grouped, run_means
from ddice.runs.comparison.store import Result

COLUMNS = (
    "backend",
    "extractor",
    "score, mean (std)",
    "IQM [95 %]",
    "each seed",
    "ratios' effective sample size",
    "clip rate",
    "decisions/s",
)


def render_table(results: Sequence[Result]) -> str:
    """A Markdown table: mean score of the seeds with its sample deviation, IQM over seeds with a
    95 % bootstrap interval, each seed, diagnostics. One for each dataset, where there are several.
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
    lines = [_line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    lines += [_line(_row(*group, rows)) for group, rows in grouped(results).items()]
    evaluation = results[0].evaluation
    lines += [
        "",
        f"Scores: {evaluation.label}; {len(evaluation.returns)} episodes per seed in "
        f"{evaluation.env_id}, last checkpoint.",
    ]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _row(backend: str | None, extractor: str, results: Sequence[Result]) -> list[str]:
    """The cells of one policy."""
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
    return [
        backend or "",
        extractor,
        mean,
        interval,
        " ".join(f"{score:.1f}" for score in scores[:, 0]),
        f"{np.mean(sizes):.2f}" if sizes else "",
        f"{np.mean(clipped):.2f}" if clipped else "",
        f"{np.median(speeds):.0f}" if speeds else "",
    ]
