"""Where the ratios put their weight in a maze, and which way the weighted data go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ddice.data import Transitions
from ddice.parts.part import effective_sample_size
from ddice.parts.ratio_source import RatioSource
from ddice.pictures.maze import Maze, draw_maze, position_columns
from ddice.pictures.style import DENSITY_MAP, VERMILLION, colour_bar, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 200_000  # of the data: enough for a smooth picture
CHUNK = 8192
CELLS, ARROWS = 12, 3  # bins, and arrows, along one side of a maze's cell
# behind an arrow, times the mean of the bins that hold any: where few rows are, they point anywhere
LEAST_ROWS = 0.5
# percentile of the filled bins that has the darkest colour: a peak at the goal would leave the rest
# white
BRIGHTEST = 99


@dataclass(frozen=True)
class RatioGrid:
    """Densities (rows, columns) over the maze's extent, each of integral 1, and mean steps at
    points, under the data and under the ratios.
    """

    data: np.ndarray
    weighted: np.ndarray
    points: np.ndarray  # (P, 2)
    data_steps: np.ndarray  # (P, 2), mean of next position - position
    weighted_steps: np.ndarray  # (P, 2)
    effective_sample_size: float  # of the ratios, as a share


@torch.no_grad()
def ratio_grid(
    backend: RatioSource, data: Transitions, maze: Maze, *, rows: int = ROWS
) -> RatioGrid:
    """`rows` random rows (all, where there are no more), binned by position with weight 1 and
    with weight w of `backend.log_ratio`.
    """
    columns, positions, steps, log_ratios, weights = position_columns(data.spec), [], [], [], []
    batches = (
        data.batches(CHUNK)
        if rows >= len(data)
        else (data.sample(CHUNK, seed=0, step=step) for step in range(-(-rows // CHUNK)))
    )
    for batch in batches:
        positions.append(batch.observations[:, columns])
        steps.append(batch.next_observations[:, columns] - batch.observations[:, columns])
        log_ratios.append(backend.log_ratio(batch))
        weights.append(batch.weights)
    where, step, log_ratio, weight = (
        torch.cat(parts).double().cpu() for parts in (positions, steps, log_ratios, weights)
    )
    if not bool(torch.isfinite(log_ratio).any()):
        raise ValueError(
            "expected ratios of which at least one is positive, got only zeros: the backend "
            "has switched all data off"
        )
    ratio = (weight * torch.exp(log_ratio - log_ratio.max())).numpy()
    x, y = where.numpy().T
    points, data_steps, weighted_steps = _flow(
        where.numpy(), step.numpy(), weight.numpy(), ratio, maze
    )
    return RatioGrid(
        _histogram(x, y, weight.numpy(), maze, CELLS, density=True),
        _histogram(x, y, ratio, maze, CELLS, density=True),
        points,
        data_steps,
        weighted_steps,
        float(effective_sample_size(log_ratio, weight)),
    )


def _histogram(
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    maze: Maze,
    per_cell: int,
    *,
    density: bool = False,
) -> np.ndarray:
    """(rows, columns) over the extent, bins of side / per_cell."""
    left, right, bottom, top = maze.extent
    bins = [
        round((high - low) / maze.side * per_cell) for low, high in ((bottom, top), (left, right))
    ]
    found, _, _ = np.histogram2d(
        y, x, bins=bins, range=((bottom, top), (left, right)), weights=weights, density=density
    )
    return np.asarray(found)


def _flow(
    where: np.ndarray, steps: np.ndarray, weights: np.ndarray, ratio: np.ndarray, maze: Maze
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres of the bins with enough rows (P, 2), and the mean step in each, under the weights
    and under the ratios.
    """
    x, y = where.T

    def total(values: np.ndarray) -> np.ndarray:
        return _histogram(x, y, values, maze, ARROWS)

    counts = total(np.ones(len(x)))
    enough = (
        (counts >= LEAST_ROWS * counts[counts > 0].mean())
        & (total(weights) > 0)
        & (total(ratio) > 0)
    )
    row, column = np.nonzero(enough)
    points = np.stack(
        [
            maze.extent[0] + (column + 0.5) * maze.side / ARROWS,
            maze.extent[2] + (row + 0.5) * maze.side / ARROWS,
        ],
        1,
    )
    means = [
        np.stack([total(w * steps[:, axis])[enough] / total(w)[enough] for axis in (0, 1)], 1)
        for w in (weights, ratio)
    ]
    return points, means[0], means[1]


def ratio_map(backend: RatioSource, data: Transitions, maze: Maze, *, rows: int = ROWS) -> Figure:
    """Left the dataset, right the same weighted by the ratios of `backend`: where it is (colour)
    and which way it goes on average (arrows).
    """
    grid = ratio_grid(backend, data, maze, rows=rows)
    figure, axes = panels(1, 2, width=4.4, height=4.4)
    brightest = float(
        np.percentile(
            np.concatenate([grid.data[grid.data > 0], grid.weighted[grid.weighted > 0]]), BRIGHTEST
        )
    )
    longest = max(
        np.linalg.norm(steps, axis=1).max(initial=1e-12)
        for steps in (grid.data_steps, grid.weighted_steps)
    )
    kind = {
        "action": "action ratios w(a | s): they turn arrows",
        "state-action": "state-action ratios w(s, a)",
    }.get(backend.ratio_kind, "")
    titles = (
        "the dataset\n(arrows: the mean step)",
        f"weighted by the ratios\n{kind}, effective sample size {grid.effective_sample_size:.2f}",
    )
    for axis, density, steps, title in zip(
        axes[0],
        (grid.data, grid.weighted),
        (grid.data_steps, grid.weighted_steps),
        titles,
        strict=True,
    ):
        drawn = axis.imshow(
            density,
            origin="lower",
            extent=maze.extent,
            cmap=DENSITY_MAP,
            vmin=0,
            vmax=brightest,
            interpolation="nearest",
        )
        draw_maze(axis, maze)
        arrows = {
            "angles": "xy",
            "scale_units": "xy",
            "scale": 1,
            "pivot": "mid",
            "width": 0.007,
            "minlength": 0,
        }
        axis.quiver(
            *grid.points.T,
            *(steps / longest * 0.9 * maze.side / ARROWS).T,
            color=VERMILLION,
            zorder=4,
            **arrows,
        )
        axis.set_title(title, fontsize=10)
    colour_bar(figure, drawn, axes[0, 1], "density")
    return figure
