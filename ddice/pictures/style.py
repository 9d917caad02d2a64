"""The look of the pictures: colours that stay apart for colour-blind eyes (Okabe and Ito), and
an empty figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, VERMILLION, GREY, INK = "#0072B2", "#E69F00", "#D55E00", "#9A9A9A", "#222222"
# of lines side by side, the furthest apart first
SERIES = (BLUE, VERMILLION, "#009E73", "#CC79A7", ORANGE, "#56B4E9")
WALL = "#5B6470"
DENSITY_MAP, VALUE_MAP, TIME_MAP = "Blues", "cividis", "viridis"
DPI = 110


def panels(
    rows: int, columns: int, *, width: float = 3.6, height: float = 3.6
) -> tuple[Figure, Any]:
    """A figure of `empty_figure`, and its axes (rows, columns)."""
    figure = empty_figure(width * columns, height * rows)
    return figure, figure.subplots(rows, columns, squeeze=False)


def empty_figure(width: float, height: float) -> Figure:
    """A figure that belongs to nobody's pyplot; sizes in inches. Raises ImportError with what to
    install.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'ddice[plots]'") from error
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def colour_bar(figure: Figure, drawn: Any, axes: Any, label: str) -> None:
    """A slim colour bar."""
    bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02, label=label)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
