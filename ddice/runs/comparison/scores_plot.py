"""The scores of a comparison as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddice.pictures.style import panels
from ddice.runs.comparison.grid import BEHAVIOUR
from ddice.runs.comparison.groups import grouped, run_means
from ddice.runs.comparison.store import Result

DPI = 130


def plot_scores(results: Sequence[Result], path: Path) -> None:
    """A bar per policy, a dot per seed. Raises ImportError without matplotlib."""
    groups = grouped(results)
    figure, grid = panels(1, 1, width=8, height=0.45 * len(groups) + 1.4)
    axes = grid[0, 0]
    names = []
    for row, ((backend, extractor), rows) in enumerate(groups.items()):
        names.append(extractor if backend is None else f"{backend} + {extractor}")
        scores = run_means(rows)[:, 0]
        colour = "tab:gray" if extractor == BEHAVIOUR else "tab:blue"
        axes.barh(row, scores.mean(), color=colour, alpha=0.5)
        axes.plot(scores, np.full(len(scores), row), "o", color="black", markersize=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"score ({results[0].evaluation.label})", fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=DPI)
