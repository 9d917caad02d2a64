"""Figures as files and as parts of a page: the same bytes for the same drawing."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddice.pictures.style import GREY, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_DPI = 160
# All text and lines in one ink, which the page replaces by its own: it is light or dark.
INKED = (
    "text.color",
    "axes.labelcolor",
    "axes.edgecolor",
    "axes.titlecolor",
    "xtick.color",
    "ytick.color",
)
STYLE = {
    **dict.fromkeys(INKED, INK),
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.fonttype": "none",  # text stays text: it can be found and read aloud
}


@dataclass(frozen=True)
class Drawing:
    """A figure as a PNG file and as an SVG element for a page."""

    name: str
    title: str
    caption: str
    png: bytes
    svg: str


def draw(name: str, title: str, caption: str, make: Callable[[], Figure]) -> Drawing:
    """The figure that `make` returns. Raises ImportError with what to install."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("a report needs matplotlib: pip install 'ddice[report]'") from error
    # The salt names what is defined inside: figures on a page must not share names.
    style: dict[Any, Any] = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = make()
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
        about = {"Date": None, "Creator": None}
        figure.savefig(svg, format="svg", transparent=True, metadata=about)
    return Drawing(name, title, caption, png.getvalue(), _element(svg.getvalue()))


def _element(svg: str) -> str:
    """The SVG without what only files need, in the ink of the page."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    # Its viewBox is enough: the page gives the width.
    element = re.sub(r'<svg ([^>]*?)(?: ?width="[^"]*"| ?height="[^"]*")', r"<svg \1", element)
    element = re.sub(r'<svg ([^>]*?)(?: ?width="[^"]*"| ?height="[^"]*")', r"<svg \1", element)
    return element.replace(INK, "currentColor")
