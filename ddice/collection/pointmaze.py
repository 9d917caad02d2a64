"""Farama's PointMaze sets, regenerated on this machine without a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ddice.core.config import unknown_name
from ddice.core.randomness import one_seed
from ddice.data.environment import close_environment, register_robotics
from ddice.data.minari_store import has_dataset
from ddice.data.minari_writer import write_dataset
from ddice.data.scores import POINTMAZE_REFERENCES

Size = Literal["umaze", "medium", "large"]
Cell = tuple[int, int]
Point = tuple[float, float]

FULL_STEPS = 1_000_000
FULL_SEED = 123
ACTION_NOISE = 0.5
POSITION_GAIN = 10.0
WAYPOINT_RADIUS = 0.1
MOVES: tuple[Cell, ...] = ((0, 1), (0, -1), (-1, 0), (1, 0))
# Noise is drawn, and the progress bar moved, once per block: large enough to cost nothing, small
# enough for a smooth bar.
BLOCK = 5_000


@dataclass(frozen=True)
class PointMaze:
    """One maze: the environment's id, the goal cell (row, column) and the horizon of Farama's
    evaluation environment.
    """

    env_id: str
    goal_cell: Cell
    horizon: int


POINTMAZES: dict[str, PointMaze] = {
    "umaze": PointMaze("PointMaze_UMaze-v3", (1, 1), 300),
    "medium": PointMaze("PointMaze_Medium-v3", (6, 6), 600),
    "large": PointMaze("PointMaze_Large-v3", (7, 9), 800),
}


def solve_maze(maze_map: Sequence[Sequence[int | str]], start: Cell, goal: Cell) -> list[Cell]:
    """The cells after `start` up to and including `goal` along a depth-first search; not always the
    shortest way.

    Cells equal to 1 are walls. Neighbours are marked when they are first seen and the newest one is
    explored first. The order matters where the maze has loops: over 200 episodes the controller
    returns 368 (medium) and 485 (large) with this one, close to Farama's reference experts of 366
    and 473, but 325 and 416 with a recursive search that follows `MOVES` in order. Raises
    ValueError when no way leads to `goal`.
    """
    origin: dict[Cell, Cell] = {start: start}
    stack = [start]
    while stack and goal not in origin:
        row, column = cell = stack.pop()
        for down, right in MOVES:
            neighbour = (row + down, column + right)
            if maze_map[neighbour[0]][neighbour[1]] != 1 and neighbour not in origin:
                origin[neighbour] = cell
                stack.append(neighbour)
    if goal not in origin:
        raise ValueError(
            f"expected a maze in which {goal} can be reached from {start}, found no way "
            "between the two cells"
        )
    way = []
    cell = goal
    while cell != start:
        way.append(cell)
        cell = origin[cell]
    return way[::-1]


class WaypointController:
    """Farama's scripted driver: action = 10 (waypoint - position) - velocity, without noise and
    before clipping.

    Waypoints are the centres of the cells on the way, then the goal itself; the next one is taken
    within a distance of 0.1, and the way is planned again whenever the goal changes. `maze` is
    `env.unwrapped.maze` of a PointMaze environment.
    """

    def __init__(self, maze: Any) -> None:
        self._maze = maze
        self._goal: Point | None = None
        self._waypoints: list[Point] = []

    def plan(self, position: Point, goal: Point) -> None:
        """Forgets the way travelled so far and plans one from `position` to `goal`."""
        cells = solve_maze(self._maze.maze_map, self._cell(position), self._cell(goal))
        centres = [self._maze.cell_rowcol_to_xy(cell) for cell in cells[:-1]]
        self._goal = goal
        # Taken from the end, so that the current waypoint is the last element.
        self._waypoints = [goal, *((float(x), float(y)) for x, y in reversed(centres))]

    def _cell(self, point: Point) -> Cell:
        row, column = self._maze.cell_xy_to_rowcol(point)
        return int(row), int(column)

    def act(self, state: Sequence[float], goal: Point) -> tuple[float, float]:
        """state (x, y, velocity x, velocity y) and goal (x, y) -> action (2,), plain floats
        because this runs once per step.
        """
        x, y, velocity_x, velocity_y = state
        if goal != self._goal:
            self.plan((x, y), goal)
        target_x, target_y = self._waypoints[-1]
        if len(self._waypoints) > 1 and math.hypot(target_x - x, target_y - y) <= WAYPOINT_RADIUS:
            self._waypoints.pop()
            target_x, target_y = self._waypoints[-1]
        return POSITION_GAIN * (target_x - x) - velocity_x, POSITION_GAIN * (
            target_y - y
        ) - velocity_y


def _checked(size: str) -> PointMaze:
    if size not in POINTMAZES:
        raise ValueError(unknown_name(size, POINTMAZES, "PointMaze size"))
    if not register_robotics():
        raise ImportError(
            "PointMaze needs gymnasium-robotics and mujoco, which are not installed: pip "
            "install 'ddice[robotics]'"
        )
    return POINTMAZES[size]


def pointmaze_evaluation_spec(size: Size) -> str:
    """The evaluation environment as JSON (`EnvSpec.to_json()`): one goal cell, random start, sparse
    reward, 300, 600 or 800 steps.

    The environment moves the goal by up to 0.25 in each direction at every reset; the cell's centre
    stays within the success radius of 0.45. Raises ValueError for an unknown size, ImportError
    without gymnasium-robotics.
    """
    import gymnasium

    maze = _checked(size)
    plain = gymnasium.spec(maze.env_id).kwargs["maze_map"]
    marked = [["r" if cell == 0 else cell for cell in row] for row in plain]
    marked[maze.goal_cell[0]][maze.goal_cell[1]] = "g"
    env = gymnasium.make(
        maze.env_id,
        maze_map=marked,
        continuing_task=True,
        reset_target=False,
        max_episode_steps=maze.horizon,
    )
    try:
        assert env.spec is not None
        return env.spec.to_json()
    finally:
        close_environment(env)


@dataclass(frozen=True)
class _Recording:
    """One unbroken run of T steps: T + 1 states (x, y, velocity) and goals as observed, T
    actions and rewards, and where goals were reached.
    """

    states: NDArray[np.float64]  # (T + 1, 4)
    goals: NDArray[np.float64]  # (T + 1, 2)
    actions: NDArray[np.float32]  # (T, 2)
    rewards: NDArray[np.float64]  # (T,)
    reached: NDArray[np.bool_]  # (T,)

    def episodes(self, seed: int) -> Iterator[dict[str, Any]]:
        """The run, cut by truncation after every reached goal and at its end; an episode starts
        with the last observation of the one before.
        """
        ends = np.append(np.flatnonzero(self.reached[:-1]) + 1, len(self.actions))
        for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
            rows, steps = slice(start, end + 1), slice(start, end)
            truncations = np.zeros(end - start, dtype=bool)
            truncations[-1] = True
            yield {
                "observations": {
                    "achieved_goal": self.states[rows, :2],
                    "desired_goal": self.goals[rows],
                    "observation": self.states[rows],
                },
                "actions": self.actions[steps],
                "rewards": self.rewards[steps],
                "terminations": np.zeros(end - start, dtype=bool),
                "truncations": truncations,
                "seed": seed if start == 0 else None,
            }


def _record(env: Any, *, steps: int, seed: int, progress: bool) -> _Recording:
    run = _Recording(
        np.empty((steps + 1, 4)),
        np.empty((steps + 1, 2)),
        np.empty((steps, 2), dtype=np.float32),
        np.empty(steps),
        np.empty(steps, dtype=bool),
    )
    controller = WaypointController(env.unwrapped.maze)
    noise = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    run.states[0], run.goals[0] = observation["observation"], observation["desired_goal"]
    with tqdm(
        total=steps,
        desc=env.spec.id,
        unit="step",
        unit_scale=True,
        disable=not progress,
        mininterval=0.5,
        dynamic_ncols=True,
    ) as bar:
        for begin in range(0, steps, BLOCK):
            end = min(begin + BLOCK, steps)
            disturbances = (ACTION_NOISE * noise.standard_normal((end - begin, 2))).tolist()
            for step, (noise_x, noise_y) in enumerate(disturbances, start=begin):
                goal_x, goal_y = run.goals[step].tolist()
                action_x, action_y = controller.act(run.states[step].tolist(), (goal_x, goal_y))
                action = run.actions[step]
                action[0] = min(max(action_x + noise_x, -1.0), 1.0)
                action[1] = min(max(action_y + noise_y, -1.0), 1.0)
                observation, run.rewards[step], _, _, info = env.step(action)
                run.states[step + 1], run.goals[step + 1] = (
                    observation["observation"],
                    observation["desired_goal"],
                )
                run.reached[step] = info["success"]
            bar.update(end - begin)
    return run


def pointmaze_id(size: str, *, steps: int = FULL_STEPS, seed: int = FULL_SEED) -> str:
    """`ddice/pointmaze-umaze-v0`; fewer or more steps and another seed show in the name:
    `ddice/pointmaze-umaze-100k-seed7-v0`.
    """
    if steps < 1 or seed < 0:
        raise ValueError(f"expected steps >= 1 and a seed >= 0, got {steps} and {seed}")
    count = f"{steps // 1000}k" if steps % 1000 == 0 else str(steps)
    return (
        f"ddice/pointmaze-{size}"
        + (f"-{count}" if steps != FULL_STEPS else "")
        + (f"-seed{seed}" if seed != FULL_SEED else "")
        + "-v0"
    )


def make_pointmaze(
    size: Size,
    *,
    steps: int = FULL_STEPS,
    seed: int = FULL_SEED,
    dataset_id: str | None = None,
    progress: bool = True,
) -> str:
    """Regenerates one of Farama's PointMaze sets as a local Minari dataset and returns its id; one
    that is already there is left as it is.

    PointMaze_{UMaze,Medium,Large}-v3 as a continuing task whose goal moves when it is reached; the
    waypoint controller with N(0, 0.5) noise, clipped to [-1, 1]; the one long run is cut at every
    success by truncation, and nothing ever terminates. As in the published sets the new goal shows
    one step late: the first observation of an episode still holds the goal that was just reached.
    Regenerated is not published: the id is under `ddice/` (`pointmaze_id` names it) and a
    `dataset_id` elsewhere is refused. Nothing is written before the last step, so an interrupted
    call leaves nothing behind. Raises ValueError for an unknown size, steps < 1 or a foreign id;
    ImportError without gymnasium-robotics.
    """
    import gymnasium

    if size not in POINTMAZES:
        raise ValueError(unknown_name(size, POINTMAZES, "PointMaze size"))
    seed = one_seed(seed)
    dataset_id = dataset_id or pointmaze_id(size, steps=steps, seed=seed)
    if not dataset_id.startswith("ddice/"):
        raise ValueError(
            "expected an id under ddice/, such as "
            f"{pointmaze_id(size, steps=steps, seed=seed)!r}, got {dataset_id!r}"
        )
    if has_dataset(dataset_id):
        return dataset_id
    maze = _checked(size)
    horizon = max(steps, FULL_STEPS)
    env = gymnasium.make(
        maze.env_id, continuing_task=True, reset_target=True, max_episode_steps=horizon
    )
    try:
        recording = _record(env, steps=steps, seed=seed, progress=progress)
        assert env.spec is not None
        env_spec = env.spec.to_json()
    finally:
        close_environment(env)
    write_dataset(
        dataset_id,
        list(recording.episodes(seed)),
        env_spec_json=env_spec,
        eval_env_spec_json=pointmaze_evaluation_spec(size),
        reference_scores=POINTMAZE_REFERENCES[size],
        description=(
            f"{maze.env_id}, {steps} steps, seed {seed}: Farama's PointMaze recipe run again "
            "by ddice; not the published data."
        ),
        algorithm="depth-first waypoints, PD controller, action noise 0.5",
        author="ddice",
        requirements=["gymnasium-robotics>=1.4.1", "mujoco>=3.1.6,<3.12"],
    )
    return dataset_id
