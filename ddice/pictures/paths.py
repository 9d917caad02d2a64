"""Trajectories over a maze."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ddice.data import Transitions
from ddice.pictures.maze import Maze, draw_maze, position_columns
from ddice.pictures.recording import Recording
from ddice.pictures.style import BLUE, GREY, INK, TIME_MAP, VERMILLION, colour_bar, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_EPISODES = 60  # of the dataset
DARK_ENOUGH = 0.9  # of the colour map: its yellow end is lost on white


def segments(positions: np.ndarray) -> np.ndarray:
    """Positions (T + 1, 2) -> the T pieces of the way, (T, 2, 2): from, to."""
    return np.stack([positions[:-1], positions[1:]], axis=1)


def dataset_paths(data: Transitions, episodes: int = SHOWN_EPISODES) -> list[np.ndarray]:
    """The positions (T + 1, 2) of `episodes` episodes, spread evenly over the data. Raises
    ValueError for independent transitions.
    """
    if data.episode is None:
        raise ValueError(
            "expected whole episodes, got independent transitions: they have no trajectories"
        )
    columns, episode = position_columns(data.spec), data.episode.cpu().numpy()
    count = int(episode[-1]) + 1
    paths = []
    for index in np.unique(np.linspace(0, count - 1, min(episodes, count)).round().astype(int)):
        first, end = np.searchsorted(episode, (index, index + 1))
        steps = data.observations[first:end, columns].cpu().numpy()
        paths.append(
            np.concatenate([steps, data.next_observations[end - 1 : end, columns].cpu().numpy()])
        )
    return paths


def trajectories(
    maze: Maze,
    recordings: Sequence[Recording],
    *,
    colour: Literal["time", "success"] = "time",
    data: Transitions | None = None,
) -> Figure:
    """The ways of recorded episodes (see `record`), coloured by the step or by success; with
    `data`, some of its episodes in grey below.
    """
    if not recordings:
        raise ValueError(
            "expected at least one recorded episode, got none: record(policy, episodes=...)"
        )
    if colour not in ("time", "success"):
        raise ValueError(f'expected colour="time" or "success", got {colour!r}')
    figure, axes = panels(1, 1, width=5.2, height=4.9)
    axis = axes[0, 0]
    goals = np.unique(np.concatenate([recording.goals for recording in recordings]), axis=0)
    draw_maze(
        axis, maze, goal=(float(goals[0, 0]), float(goals[0, 1])) if len(goals) == 1 else None
    )
    for path in dataset_paths(data) if data is not None else ():
        axis.plot(*path.T, color=GREY, linewidth=0.5, alpha=0.5, zorder=1)
    if colour == "time":
        _draw_time(figure, axis, recordings)
    else:
        _draw_success(axis, recordings)
    starts = np.stack([recording.positions[0] for recording in recordings])
    axis.plot(
        *starts.T,
        "o",
        color="white",
        markeredgecolor=INK,
        markersize=5,
        linestyle="",
        zorder=6,
        label="start",
    )
    if data is not None:
        axis.plot([], [], color=GREY, label="dataset")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    axis.set_title(_title(recordings), fontsize=10)
    return figure


def _title(recordings: Sequence[Recording]) -> str:
    text = (
        f"{len(recordings)} episode{'s' if len(recordings) > 1 else ''}, mean return "
        f"{np.mean([one.total for one in recordings]):.1f}"
    )
    reached = [one.success for one in recordings]
    return text if None in reached else f"{text}, {sum(map(bool, reached))} reached the goal"


def _draw_time(figure: Figure, axis: Any, recordings: Sequence[Recording]) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap

    colours = ListedColormap(colormaps[TIME_MAP](np.linspace(0, DARK_ENOUGH, 256)))
    longest = max(len(recording.actions) for recording in recordings)
    for recording in recordings:
        pieces = segments(recording.positions)
        lines = LineCollection(
            list(pieces),
            array=np.arange(len(pieces)),
            cmap=colours,
            linewidth=1.1,
            alpha=0.8,
            zorder=4,
        )
        lines.set_clim(0, longest)
        axis.add_collection(lines)
    colour_bar(figure, lines, axis, "step")


def _draw_success(axis: Any, recordings: Sequence[Recording]) -> None:
    for success, colour, style, label in (
        (True, BLUE, "-", "reached the goal"),
        (False, VERMILLION, "--", "did not"),
    ):
        own = [recording for recording in recordings if bool(recording.success) is success]
        for i, recording in enumerate(own):
            name = f"{label} ({len(own)})" if i == 0 else None
            axis.plot(
                *recording.positions.T,
                style,
                color=colour,
                linewidth=1.0,
                alpha=0.8,
                zorder=4,
                label=name,
            )
