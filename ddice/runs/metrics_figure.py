"""The metrics of a run as one figure: a band for each question, smooth curves over faint raw
ones, what should be beside what is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddice.pictures.style import BLUE, GREY, INK, VERMILLION, empty_figure
from ddice.runs.metrics import EXPECTED, Curves, read_metrics
from ddice.runs.questions import QUESTIONS, Reading, part_of, reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4
WIDTH, PANEL, TITLE, LINE = 3.3, 1.9, 0.5, 0.18  # inches
LEFT = 0.01  # where text begins, of the width
LEGEND = "bold: smoothed; faint: as measured; dashed: what it should be"
SMOOTHED_OVER = 0.1  # of a curve: wide enough that the noise of batches goes
ENOUGH = 20  # points; fewer are drawn as they are


@dataclass(frozen=True)
class Panel:
    """One metric of a part, (N,) steps and values; `expected` is what it should be, (N,) or
    one number for all steps.
    """

    part: str
    name: str
    steps: np.ndarray
    values: np.ndarray
    expected: np.ndarray | None
    reading: Reading

    @property
    def constant(self) -> bool:
        """A line of text says as much as a curve would."""
        return bool((self.values == self.values[0]).all())

    @property
    def last(self) -> float:
        """Where the smooth curve ends."""
        return float(smooth(self.values)[-1])

    @property
    def title(self) -> str:
        should = "" if self.expected is None else f", should be {self.expected[-1]:.3g}"
        return f"{self.part} · {self.name}: {self.last:.3g}{should}"


def smooth(
    values: np.ndarray,  # (N,)
) -> np.ndarray:
    """The mean of each point and its neighbours on both sides, (N,); at the ends there are fewer
    of them.
    """
    count = len(values)
    half = 0 if count < ENOUGH else max(1, round(count * SMOOTHED_OVER / 2))
    places = np.arange(count)
    first, stop = np.maximum(places - half, 0), np.minimum(places + half + 1, count)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    means: np.ndarray = (sums[stop] - sums[first]) / (stop - first)
    return means


def panels_by_question(curves: Curves) -> dict[str, list[Panel]]:
    """The panels of each question, in the order of the questions and of the metrics in them."""
    found: dict[str, list[Panel]] = {question: [] for question in QUESTIONS}
    for (stage, name), points in curves.items():
        if name.endswith(EXPECTED):
            continue
        part, metric = part_of(stage, name)
        how = reading(part, metric)
        steps, values = np.array(points, dtype=np.float64).T
        expected = _expected(curves.get((stage, name + EXPECTED)), how, steps)
        found[how.question].append(Panel(part, metric, steps, values, expected, how))
    return {question: panels for question, panels in found.items() if panels}


def _expected(
    points: Sequence[tuple[int, float]] | None, how: Reading, steps: np.ndarray
) -> np.ndarray | None:
    if points is not None:
        at, values = np.array(points, dtype=np.float64).T
        expected: np.ndarray = np.interp(steps, at, values)
        return expected
    return None if how.expected is None else np.full(len(steps), how.expected)


def plot_metrics(folder: Path, path: Path, ended: str = "") -> bool:
    """Draw the metrics of the stages in `folder` into the file `path`; False when there are none.
    `ended` says how a run ended that did not finish. Raises ImportError without matplotlib.
    """
    questions = panels_by_question(read_metrics(folder))
    if not questions:
        return False
    figure = metrics_figure(questions, "/".join(folder.absolute().parts[-3:-1]), ended)
    figure.savefig(path)
    return True


def metrics_figure(questions: dict[str, list[Panel]], title: str, ended: str = "") -> Figure:
    """The figure of `plot_metrics`: a band for the title, then one for each question."""
    curves = {
        question: [panel for panel in panels if not panel.constant]
        for question, panels in questions.items()
    }
    constants = {question: list(_constants(panels)) for question, panels in questions.items()}
    heights = [
        LINE * (2 + len(constants[question])) + PANEL * _rows(curves[question])
        for question in questions
    ]
    figure = empty_figure(WIDTH * COLUMNS, TITLE + sum(heights))
    title_band, *found = figure.subfigures(
        1 + len(heights), 1, height_ratios=[TITLE, *heights], squeeze=False
    )[:, 0]
    title_band.text(LEFT, 0.7, title, fontsize=11, color=INK, va="center")
    colour, line = (VERMILLION, ended) if ended else (GREY, LEGEND)
    title_band.text(LEFT, 0.25, line, fontsize=8, color=colour, va="center")
    for band, question in zip(found, questions, strict=True):
        left = {"x": LEFT, "ha": "left"}
        band.suptitle(question, fontsize=10, weight="bold", color=INK, **left)
        band.supxlabel("\n".join(constants[question]), fontsize=8, color=INK, **left)
        if curves[question]:
            _draw_all(
                band.subplots(_rows(curves[question]), COLUMNS, squeeze=False), curves[question]
            )
    return figure


def _rows(panels: Sequence[Panel]) -> int:
    return -(-len(panels) // COLUMNS)


def _constants(panels: Sequence[Panel]) -> Iterator[str]:
    """Metrics that never change, some to a line."""
    said = [panel.title for panel in panels if panel.constant]
    for first in range(0, len(said), COLUMNS):
        yield "one value throughout:  " + ";  ".join(said[first : first + COLUMNS])


def _draw_all(grid: Any, panels: Sequence[Panel]) -> None:
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel)


def _draw(axes: Any, panel: Panel) -> None:
    axes.plot(panel.steps, panel.values, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(panel.steps, smooth(panel.values), color=BLUE, linewidth=1.8)
    if panel.expected is not None:
        axes.plot(panel.steps, panel.expected, "--", color=INK, linewidth=1)
    if panel.name.endswith("_rate"):
        axes.set_ylim(bottom=0)
    axes.set_title(panel.title, fontsize=8, loc="left", color=INK)
    axes.set_xlabel(panel.reading.sound, fontsize=7, color=GREY, loc="left")
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
