"""f-divergences whose ratio grows beyond all bounds at a finite y, the pole: the tangent of the
conjugate takes over before it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.dice_backends.divergences.divergence import FDivergence


def pole_cut(pole: float, dtype: torch.dtype) -> float:
    """The y closest to a pole at which y is trusted: 64 machine epsilons before it, where
    rounding changes the distance by 1 %.
    """
    return pole * (1 - 64 * torch.finfo(dtype).eps)


class _WithPole(FDivergence, abstract=True):
    """A ratio that grows beyond all bounds at a finite y: the tangent takes over where it reaches
    `max_ratio`.

    From a poor start y passes the pole, and the slope at the cut is the gradient there: with 1000
    in place of 100 Adam needs thousands of steps to forget it.
    """

    max_ratio: float = Field(
        100.0, gt=1, description="the ratio past which the conjugate goes on along its tangent"
    )

    @abstractmethod
    def slope(self, ratio: float) -> float:
        """f'(x)."""

    @property
    @abstractmethod
    def pole(self) -> float:
        """The limit of f'(x) as x grows; infinite where there is no pole."""

    def cut(self, dtype: torch.dtype) -> float:
        # The y at which the ratio is `max_ratio` is f'(max_ratio), as the ratio inverts f'. With a
        # large `max_ratio` it can round to the pole itself.
        return min(self.slope(self.max_ratio), pole_cut(self.pole, dtype))


class ReverseKL(_WithPole):
    """f(x) = -log x + x - 1; conjugate -log(1 - y); ratio 1 / (1 - y); pole at y = 1."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    def f(self, ratio: Tensor) -> Tensor:
        return -torch.log(ratio) + ratio - 1

    @property
    def pole(self) -> float:
        return 1.0

    def slope(self, ratio: float) -> float:
        return 1 - 1 / ratio

    def _conjugate(self, y: Tensor) -> Tensor:
        return -torch.log1p(-y)

    def _log_ratio(self, y: Tensor) -> Tensor:
        return -torch.log1p(-y)


class Neyman(_WithPole):
    """Neyman chi^2: f(x) = (x - 1)^2 / x; conjugate 2 - 2 sqrt(1 - y); ratio 1 / sqrt(1 - y);
    pole at y = 1.
    """

    kind: Literal["neyman"] = "neyman"

    def f(self, ratio: Tensor) -> Tensor:
        return (ratio - 1) ** 2 / ratio

    @property
    def pole(self) -> float:
        return 1.0

    def slope(self, ratio: float) -> float:
        return 1 - ratio**-2

    def _conjugate(self, y: Tensor) -> Tensor:
        # 2 - 2 sqrt(1 - y), without its cancellation near y = 0.
        return 2 * y / (1 + torch.sqrt(1 - y))

    def _log_ratio(self, y: Tensor) -> Tensor:
        return -0.5 * torch.log1p(-y)


class SquaredHellinger(_WithPole):
    """f(x) = (sqrt x - 1)^2; conjugate y / (1 - y); ratio 1 / (1 - y)^2; pole at y = 1."""

    kind: Literal["squared_hellinger"] = "squared_hellinger"

    def f(self, ratio: Tensor) -> Tensor:
        return (torch.sqrt(ratio) - 1) ** 2

    @property
    def pole(self) -> float:
        return 1.0

    def slope(self, ratio: float) -> float:
        slope: float = 1 - ratio**-0.5
        return slope

    def _conjugate(self, y: Tensor) -> Tensor:
        return y / (1 - y)

    def _log_ratio(self, y: Tensor) -> Tensor:
        return -2 * torch.log1p(-y)


class JensenShannon(_WithPole):
    """f(x) = x log x - (x + 1) log((x + 1) / 2); conjugate -log(2 - e^y); ratio e^y / (2 - e^y);
    pole at y = log 2.
    """

    kind: Literal["jensen_shannon"] = "jensen_shannon"

    def f(self, ratio: Tensor) -> Tensor:
        return torch.xlogy(ratio, ratio) - (ratio + 1) * torch.log((ratio + 1) / 2)

    @property
    def pole(self) -> float:
        return math.log(2)

    def slope(self, ratio: float) -> float:
        return math.log(2 * ratio / (1 + ratio))

    def _conjugate(self, y: Tensor) -> Tensor:
        # 2 - e^y = 1 - (e^y - 1): keeps the digits near y = 0.
        return -torch.log1p(-torch.expm1(y))

    def _log_ratio(self, y: Tensor) -> Tensor:
        return y - torch.log1p(-torch.expm1(y))


class LeCam(_WithPole):
    """f(x) = (x - 1)^2 / (x + 1); conjugate 4 - y - 4 sqrt(1 - y) for y >= -3, else -1; ratio
    max(0, 2 / sqrt(1 - y) - 1): sparse, pole at 1.
    """

    kind: Literal["le_cam"] = "le_cam"

    def f(self, ratio: Tensor) -> Tensor:
        return (ratio - 1) ** 2 / (ratio + 1)

    @property
    def pole(self) -> float:
        return 1.0

    def slope(self, ratio: float) -> float:
        return 1 - 4 / (ratio + 1) ** 2

    def _conjugate(self, y: Tensor) -> Tensor:
        # Below -3 the ratio is 0 and f* = -f(0) = -1. Above, f* = (1 - root) (3 - root) with
        # root = sqrt(1 - y), and 1 - root = y / (1 + root) keeps its digits near 0.
        y = torch.clamp(y, min=-3)
        root = torch.sqrt(1 - y)
        return y * (3 - root) / (1 + root)

    def _log_ratio(self, y: Tensor) -> Tensor:
        positive = y > -3
        # Any y with finite slopes will do in the branch that is not taken.
        y = torch.where(positive, y, 0)
        root = torch.sqrt(1 - y)
        # 2 / root - 1 without its cancellation at y = -3
        return torch.where(
            positive, torch.log(3 + y) - torch.log(2 + root) - torch.log(root), -math.inf
        )
