"""Making datasets: any policies in any environment, and Farama's PointMaze sets."""

from ddice.collection.collecting import collect
from ddice.collection.episodes import close_environment
from ddice.collection.pointmaze import (
    WaypointController,
    make_pointmaze,
    pointmaze_evaluation_spec,
    pointmaze_id,
    solve_maze,
)

__all__ = [
    "WaypointController",
    "close_environment",
    "collect",
    "make_pointmaze",
    "pointmaze_evaluation_spec",
    "pointmaze_id",
    "solve_maze",
]
