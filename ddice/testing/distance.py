"""A two-sample distance with its noise floor: whether samples are those of a distribution that
can be drawn from exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of two samples (N, A) and (M, A): 0 for equal samples,
    positive otherwise (Szekely & Rizzo 2013).

    All pairs are formed: about N M numbers of memory. Raises ValueError for samples of other
    shapes.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"expected samples of shapes (N, A) and (M, A), got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    x = x.double()
    y = y.double()
    between = torch.cdist(x, y).mean()
    within = torch.cdist(x, x).mean() + torch.cdist(y, y).mean()
    return float(2 * between - within)


@dataclass(frozen=True)
class TwoSample:
    """A distance to exact samples, and the floor: mean and largest distance between two exact
    samples of the same size.
    """

    distance: float
    floor: float
    highest_floor: float

    @property
    def multiple(self) -> float:
        """distance / floor: about 1 when the sample cannot be told from an exact one."""
        return self.distance / self.floor


def two_sample(
    sample: Tensor, draw: Callable[[int, int], Tensor], *, repetitions: int = 20
) -> TwoSample:
    """`energy_distance` of a sample (N, A) to exact ones, draw(count, seed) -> (count, A),
    averaged over `repetitions` draws, and its noise floor.
    """
    count = len(sample)
    exact = [draw(count, seed) for seed in range(2 * repetitions)]
    pairs = zip(exact[::2], exact[1::2], strict=True)
    floors = _single([energy_distance(one, other) for one, other in pairs])
    distance = _single([energy_distance(sample, one) for one in exact[::2]])
    return TwoSample(float(distance.mean()), float(floors.mean()), float(floors.max()))


def _single(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device="cpu")
