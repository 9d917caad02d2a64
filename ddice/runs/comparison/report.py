"""The table and the plots of a comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddice.core import statistics
from ddice.runs.comparison.grid import BEHAVIOUR
from ddice.runs.comparison.store import Result

Group = tuple[str | None, str]
STAGES = ("prior", "backend", "extractor", "joint")
EXPECTED = "_expected"  # "mean_ratio_expected" is what "mean_ratio" should be


def grouped(results: Sequence[Result]) -> dict[Group, list[Result]]:
    """Results by (backend, extractor), in order of appearance."""
    groups: dict[Group, list[Result]] = {}
    for result in results:
        groups.setdefault((result.backend, result.extractor), []).append(result)
    return groups


def run_means(results: Sequence[Result]) -> np.ndarray:
    """The mean score of each seed, (R, 1): runs x one task."""
    return np.array([[result.evaluation.mean] for result in results])


def render_table(results: Sequence[Result]) -> str:
    """A Markdown table: mean score of the seeds with its sample deviation, IQM over seeds with a
    95 % bootstrap interval, each seed, diagnostics.
    """
    lines = [
        "| backend | extractor | score, mean (std) | IQM [95 %] | each seed | ratios' "
        "effective sample size | clip rate | decisions/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (backend, extractor), rows in grouped(results).items():
        scores = run_means(rows)
        deviation = f" ({scores.std(ddof=1):.1f})" if len(rows) > 1 else ""
        interval = ""
        if len(rows) > 1:
            low, high = statistics.stratified_interval(scores, statistics.iqm)
            interval = f"{statistics.iqm(scores):.1f} [{low:.1f}, {high:.1f}]"
        sizes = [
            row.diagnostics["effective_sample_size"]
            for row in rows
            if "effective_sample_size" in row.diagnostics
        ]
        cells = [
            backend or "",
            extractor,
            f"{scores.mean():.1f}{deviation}",
            interval,
            " ".join(f"{score:.1f}" for score in scores[:, 0]),
            f"{np.mean(sizes):.2f}" if sizes else "",
            f"{np.mean([row.clip_rate for row in rows]):.2f}",
            f"{np.median([row.evaluation.decisions_per_second for row in rows]):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    evaluation = results[0].evaluation
    lines += [
        "",
        f"Scores: {evaluation.label}; {len(evaluation.returns)} episodes per seed in "
        f"{evaluation.env_id}, last checkpoint.",
    ]
    return "\n".join(lines)


def plot_scores(results: Sequence[Result], path: Path) -> None:
    """A bar per policy, a dot per seed."""
    from matplotlib.figure import Figure  # pyplot would choose a backend for the user's session

    groups = grouped(results)
    figure = Figure(figsize=(8, 0.45 * len(groups) + 1.4), layout="constrained")
    axes = figure.subplots()
    names = [
        extractor if backend is None else f"{backend} + {extractor}"
        for backend, extractor in groups
    ]
    for row, (name, rows) in enumerate(zip(names, groups.values(), strict=True)):
        scores = run_means(rows)[:, 0]
        axes.barh(
            row, scores.mean(), color="tab:gray" if name == BEHAVIOUR else "tab:blue", alpha=0.5
        )
        axes.plot(scores, np.full(len(scores), row), "o", color="black", markersize=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"score ({results[0].evaluation.label})", fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)


def read_metrics(folder: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(stage, metric) -> (step, value) pairs of the JSON lines in a metrics folder, in the order
    of the stages.
    """
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    files = [path for stage in STAGES if (path := folder / f"{stage}.jsonl").exists()]
    for file in files:
        for line in file.read_text().splitlines():
            record = json.loads(line)
            for name, value in record.items():
                if isinstance(value, float):
                    curves.setdefault((record["stage"], name), []).append((record["step"], value))
    return curves


def plot_metrics(folder: Path, path: Path) -> bool:
    """Every metric of the stages in `folder` against the step, what it should be dashed; False
    when there are none.
    """
    from matplotlib.figure import Figure  # pyplot would choose a backend for the user's session

    curves = read_metrics(folder)
    shown = [key for key in curves if not key[1].endswith(EXPECTED)]
    if not shown:
        return False
    columns = 5
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3 * columns, 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (stage, name) in zip(axes.flat, shown, strict=False):
        axis.plot(*zip(*curves[stage, name], strict=True), linewidth=1)
        if expected := curves.get((stage, name + EXPECTED)):
            axis.plot(*zip(*expected, strict=True), "--", color="black", linewidth=0.8)
        axis.set_title(f"{stage}: {name}", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)
    return True
