"""Pictures: a dataset, decisions, trajectories, ratios in a maze, and films. Needs the extra
`plots` (matplotlib, pillow).

Functions that draw return a `matplotlib.figure.Figure` (`figure.savefig("a.png")`); what is drawn
comes from pure functions beside them.
"""

from ddice.pictures.actions import ActionView, decision, view_actions
from ddice.pictures.dataset import dataset_overview
from ddice.pictures.film import Film, make_film, write_gif, write_strip
from ddice.pictures.maze import Maze, read_maze
from ddice.pictures.paths import trajectories
from ddice.pictures.ratios import RatioGrid, ratio_grid, ratio_map
from ddice.pictures.recording import Recorder, Recording, record

__all__ = [
    "ActionView",
    "Film",
    "Maze",
    "RatioGrid",
    "Recorder",
    "Recording",
    "dataset_overview",
    "decision",
    "make_film",
    "ratio_grid",
    "ratio_map",
    "read_maze",
    "record",
    "trajectories",
    "view_actions",
    "write_gif",
    "write_strip",
]
