"""Making datasets: any policies in any environment, and Farama's PointMaze sets."""

from ddice.collection.collecting import collect
from ddice.collection.pointmaze import (
    WaypointController,
    make_pointmaze,
    pointmaze_evaluation_spec,
    pointmaze_id,
    solve_maze,
)

__all__ = [
    "WaypointController",
    "collect",
    "make_pointmaze",
    "pointmaze_evaluation_spec",
    "pointmaze_id",
    "solve_maze",
]
