"""f-divergences that are KL below 1 and a square above: positive ratios that grow only linearly."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from ddice.dice_backends.divergences.divergence import FDivergence


class _KLBelow(FDivergence, abstract=True):
    """x log x - x + 1 below 1 and curvature * (x - 1)^2 / 2 above: positive ratios that grow
    only linearly.
    """

    @property
    @abstractmethod
    def curvature(self) -> float:
        """f'' just above x = 1."""

    def f(self, ratio: Tensor) -> Tensor:
        # The clamp keeps the KL branch, and its gradient, bounded where the square is taken.
        below = torch.clamp(ratio, max=1)
        return torch.where(
            ratio < 1, torch.xlogy(below, below) - below + 1, self.curvature * (ratio - 1) ** 2 / 2
        )

    def _conjugate(self, y: Tensor) -> Tensor:
        # relu, not clamp: at y = 0 both clamps would pass their gradient, and the slope would be 2.
        above = torch.relu(y)
        # e^y - 1 for y < 0 and y + y^2 / (2 k) for y >= 0, k the curvature, as a sum: each part is
        # zero where the other acts. So e^y can never overflow.
        return torch.expm1(torch.clamp(y, max=0)) + above + above * above / (2 * self.curvature)

    def _log_ratio(self, y: Tensor) -> Tensor:
        # log w = y for y < 0 and log(1 + y / k) above.
        return torch.clamp(y, max=0) + torch.log1p(torch.relu(y) / self.curvature)


class Piecewise(_KLBelow):
    """f(x) = x log x - x + 1 below 1, (x - 1)^2 above; conjugate e^y - 1 | y^2/4 + y; ratio e^y
    | y/2 + 1 (arXiv 2407.20109).
    """

    kind: Literal["piecewise"] = "piecewise"

    @property
    def curvature(self) -> float:
        return 2.0


class SoftChi2(_KLBelow):
    """f(x) = x log x - x + 1 below 1, (x - 1)^2 / 2 above; conjugate e^y - 1 | y^2/2 + y; ratio
    e^y | y + 1 (arXiv 2106.10783).
    """

    kind: Literal["soft_chi2"] = "soft_chi2"

    @property
    def curvature(self) -> float:
        return 1.0
