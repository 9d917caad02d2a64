"""A dataset at a glance: returns, lengths and the marginals of its actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddice.data import Transitions
from ddice.pictures.style import BLUE, DENSITY_MAP, colour_bar, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 40


class Histograms(NamedTuple):
    """What is drawn. `returns` and `lengths` are None for independent transitions."""

    returns: NDArray[np.float64] | None  # (E,)
    lengths: NDArray[np.int64] | None  # (E,)
    actions: NDArray[np.float64]  # (A, BINS), the share of the steps in each bin of [-1, 1]


def histograms(data: Transitions) -> Histograms:
    """The numbers of the picture."""
    data = data.to("cpu")
    edges = np.linspace(-1, 1, BINS + 1)
    actions = np.stack([np.histogram(column, edges)[0] for column in data.actions.numpy().T]) / len(
        data
    )
    if data.totals is None:
        return Histograms(None, None, actions)
    return Histograms(data.totals.returns, data.totals.lengths, actions)


def dataset_overview(data: Transitions) -> Figure:
    """Returns and lengths of episodes, and a row of an image for every action dimension. Raises
    ImportError without matplotlib.
    """
    found = histograms(data)
    of_episodes = ((found.returns, "return of an episode"), (found.lengths, "steps of an episode"))
    shown = [(values, label) for values, label in of_episodes if values is not None]
    figure, axes = panels(1, len(shown) + 1, width=4.2, height=3.2)
    for axis, (values, label) in zip(axes[0], shown, strict=False):
        axis.hist(values, bins=BINS, color=BLUE)
        axis.set(xlabel=label, ylabel="episodes")
    axis, size = axes[0, -1], len(found.actions)
    image = axis.imshow(
        found.actions,
        aspect="auto",
        cmap=DENSITY_MAP,
        vmin=0,
        extent=(-1, 1, size - 0.5, -0.5),
        interpolation="nearest",
    )
    axis.set(
        xlabel="action, its bounds at -1 and 1",
        ylabel="dimension",
        xticks=(-1, -0.5, 0, 0.5, 1),
        yticks=range(0, size, -(-size // 10)),
    )
    colour_bar(figure, image, axis, "share of the steps")
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(data.describe().name, fontsize=10)
    return figure
