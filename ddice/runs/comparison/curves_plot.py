"""The learning curves of a comparison as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddice.pictures.style import GREY, INK, SERIES, panels
from ddice.runs.comparison.grid import BEHAVIOUR
from ddice.runs.comparison.groups import grouped, run_means
from ddice.runs.comparison.store import Result
from ddice.runs.metrics import read_metrics

SCORE = "evaluation/score"
DPI = 130
COLUMNS = 3
DASHES = ("-", "--", ":")  # where there are more lines than colours


@dataclass(frozen=True)
class ScoreCurve:
    """The scores of R seeds after N steps of a stage, (N,) and (R, N); `last` are those of the last
    checkpoints, (R,), over more episodes.
    """

    backend: str
    extractor: str
    stage: str
    steps: np.ndarray
    scores: np.ndarray
    last: np.ndarray


def score_curves(results: Sequence[Result], folder: Path) -> list[ScoreCurve]:
    """The learning curves in a run folder, at the steps that all seeds of a policy have."""
    found = []
    for (backend, extractor), rows in grouped(results).items():
        if backend is None:
            continue
        by_stage: dict[str, list[dict[int, float]]] = {}
        for result in rows:
            for (stage, name), points in read_metrics(folder / result.folder / "metrics").items():
                if name == SCORE:
                    by_stage.setdefault(stage, []).append(dict(points))
        for stage, seeds in by_stage.items():
            steps = sorted(set.intersection(*(set(points) for points in seeds)))
            if steps:
                scores = np.array([[points[step] for step in steps] for points in seeds])
                last = run_means(rows)[:, 0]
                found.append(ScoreCurve(backend, extractor, stage, np.array(steps), scores, last))
    return found


def plot_curves(results: Sequence[Result], folder: Path, path: Path) -> bool:
    """Score against step: a panel for each extractor, a line for each backend with the range of its
    seeds, a ring at the last checkpoint. False without curves; ImportError without matplotlib.
    """
    curves = score_curves(results, folder)
    if not curves:
        return False
    places = list(dict.fromkeys((curve.extractor, curve.stage) for curve in curves))
    columns = min(COLUMNS, len(places))
    figure, grid = panels(-(-len(places) // columns), columns, width=4.2, height=3.0)
    backends = list(dict.fromkeys(curve.backend for curve in curves))
    behaviour = [row.evaluation.mean for row in results if row.extractor == BEHAVIOUR]
    for axes in grid.flat[len(places) :]:
        axes.set_visible(False)
    for axes, (extractor, stage) in zip(grid.flat, places, strict=False):
        for curve in curves:
            if (curve.extractor, curve.stage) == (extractor, stage):
                _draw(axes, curve, backends.index(curve.backend))
        if behaviour:
            axes.axhline(np.mean(behaviour), color=GREY, linewidth=1, linestyle="-.")
        axes.set_title(extractor, fontsize=9, loc="left", color=INK)
        axes.set_xlabel(f"steps of the stage {stage!r}", fontsize=8)
        axes.set_ylabel("score", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    _one_range([axes for axes in grid.flat if axes.get_visible()])
    ring = f"last checkpoint, {len(results[0].evaluation.returns)} episodes"
    _label(figure, grid.flat[0], backends, bool(behaviour), ring)
    seeds = max(len(curve.last) for curve in curves)
    if seeds > 1:
        text = f"line: mean of {seeds} seeds; band: their lowest and highest"
        figure.suptitle(text, fontsize=8, color=GREY)
    figure.savefig(path, dpi=DPI)
    return True


def _draw(axes: Any, curve: ScoreCurve, number: int) -> None:
    colour = SERIES[number % len(SERIES)]
    dashes = DASHES[number // len(SERIES) % len(DASHES)]
    low, high = curve.scores.min(0), curve.scores.max(0)
    axes.fill_between(curve.steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(curve.steps, curve.scores.mean(0), dashes, color=colour, linewidth=1.6)
    axes.plot(curve.steps[-1], curve.last.mean(), "o", color=colour, markerfacecolor="white")


def _one_range(grid: Sequence[Any]) -> None:
    """The same scores at the same height in all panels."""
    limits = np.array([axes.get_ylim() for axes in grid])
    for axes in grid:
        axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def _label(
    figure: Any,
    axes: Any,
    backends: Sequence[str],
    behaviour: bool,
    ring: str,
) -> None:
    """One legend for all panels, of which the first has no line of its own for each backend."""
    for number, backend in enumerate(backends):
        dashes = DASHES[number // len(SERIES) % len(DASHES)]
        axes.plot([], [], dashes, color=SERIES[number % len(SERIES)], label=backend)
    if behaviour:
        axes.plot([], [], "-.", color=GREY, label=BEHAVIOUR)
    axes.plot([], [], "o", color=INK, markerfacecolor="white", label=ring)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
