"""Mazes as geometry: wall rectangles, and where an observation stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddice.data.allowed import trust_in
from ddice.data.environment import close_environment, make_env, record_of
from ddice.data.spec import Spec
from ddice.pictures.style import ORANGE, WALL

GOAL_RADIUS = (
    0.45  # of one cell of side 1: the distance at which Gymnasium-Robotics counts a goal as reached
)
POSITION = "achieved_goal"
SHOWN_WALL = 0.3  # of the outer wall


@dataclass(frozen=True)
class Maze:
    """walls (W, 4): x and y of the lower left corner, width and height of every wall cell; side:
    of a cell; goal: the fixed one, or None.
    """

    walls: np.ndarray
    side: float
    goal: tuple[float, float] | None = None

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """x from, x to, y from, y to."""
        low, high = self.walls[:, :2].min(0), (self.walls[:, :2] + self.walls[:, 2:]).max(0)
        return float(low[0]), float(high[0]), float(low[1]), float(high[1])

    @property
    def view(self) -> tuple[float, float, float, float]:
        """The extent without most of the outer wall, which is one cell thick."""
        left, right, bottom, top = self.extent
        inset = (1 - SHOWN_WALL) * self.side
        return left + inset, right - inset, bottom + inset, top - inset


def read_maze(env: Any, trust_env: Sequence[str] = ()) -> Maze | None:
    """The maze of an environment (an id, an `EnvSpec`, the record in `policy.spec.env`), or None
    where it is none.

    Raises ImportError when the environment cannot be made, ValueError when it may not be.
    """
    made = make_env(record_of(env), trust_in(env, trust_env))
    try:
        maze: Any = getattr(made.unwrapped, "maze", None)
        if not hasattr(maze, "maze_map"):
            return None
        side = float(maze.maze_size_scaling)
        cells = [
            (row, column)
            for row, line in enumerate(maze.maze_map)
            for column, cell in enumerate(line)
            if cell == 1
        ]
        corners = np.array([maze.cell_rowcol_to_xy(np.array(cell)) for cell in cells]) - side / 2
        goals = np.unique(np.array(maze.unique_goal_locations), axis=0)
        goal = (float(goals[0, 0]), float(goals[0, 1])) if len(goals) == 1 else None
        return Maze(np.concatenate([corners, np.full_like(corners, side)], axis=1), side, goal)
    finally:
        close_environment(made)


def position_columns(spec: Spec) -> slice:
    """Where flat observations (..., S) of a maze hold the position: `achieved_goal`, or the start
    of `observation` where the view hides that.

    Raises ValueError for observations that are not those of a goal maze.
    """
    start = 0
    starts = {}
    for part in spec.observations.parts:
        starts[part.path] = start
        start += int(np.prod(part.shape))
    for path in (POSITION, "observation"):
        if path in starts:
            return slice(starts[path], starts[path] + 2)
    raise ValueError(
        f"expected the observations of a goal maze ({POSITION!r}, 'observation'), got "
        f"{sorted(starts)}: there are no positions to draw"
    )


def far_apart(points: np.ndarray, count: int) -> list[int]:
    """The first of the points (N, D), then again and again the one farthest from all those
    taken: `count` indices.
    """
    taken = [0]
    distance = np.full(len(points), np.inf)
    while len(taken) < min(count, len(points)):
        distance = np.minimum(distance, ((points - points[taken[-1]]) ** 2).sum(-1))
        taken.append(int(distance.argmax()))
    return taken


def draw_maze(axes: Any, maze: Maze, *, goal: tuple[float, float] | None = None) -> None:
    """Walls, and the goal with the radius in which it counts as reached (`goal`, else the maze's
    own).
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Rectangle

    patches = [Rectangle((x, y), width, height) for x, y, width, height in maze.walls]
    # An edge in the colour of the face closes the hairlines between neighbours.
    axes.add_collection(
        PatchCollection(patches, facecolor=WALL, edgecolor=WALL, linewidth=0.6, zorder=3)
    )
    goal = goal or maze.goal
    if goal is not None:
        axes.add_patch(
            Circle(
                goal,
                GOAL_RADIUS * maze.side,
                fill=False,
                edgecolor=ORANGE,
                linewidth=1.8,
                linestyle="--",
                zorder=5,
            )
        )
    axes.set(xlim=maze.view[:2], ylim=maze.view[2:], aspect="equal", xticks=(), yticks=())
    for spine in axes.spines.values():
        spine.set_visible(False)
