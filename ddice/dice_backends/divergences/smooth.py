"""f-divergences whose conjugate exists for every y: KL, and the chi-squares of Pearson."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ddice.dice_backends.divergences.divergence import FDivergence, exponent_cut, log_where_positive


class KL(FDivergence):
    """f(x) = x log x - x + 1; conjugate e^y - 1; ratio e^y. Past `exponent_cut` the conjugate
    goes on along its tangent.
    """

    kind: Literal["kl"] = "kl"

    def f(self, ratio: Tensor) -> Tensor:
        # xlogy: x log x is 0 at x = 0, not NaN.
        return torch.xlogy(ratio, ratio) - ratio + 1

    def cut(self, dtype: torch.dtype) -> float:
        return exponent_cut(dtype)

    def _conjugate(self, y: Tensor) -> Tensor:
        # e^y - 1 would lose its digits near y = 0, where most advantages are.
        return torch.expm1(y)

    def _log_ratio(self, y: Tensor) -> Tensor:
        return y


class Pearson(FDivergence):
    """Pearson chi^2: f(x) = (x - 1)^2; conjugate y^2/4 + y for y >= -2, else -1; ratio max(0,
    y/2 + 1): sparse.
    """

    kind: Literal["pearson"] = "pearson"

    def f(self, ratio: Tensor) -> Tensor:
        return (ratio - 1) ** 2

    def _conjugate(self, y: Tensor) -> Tensor:
        # Below -2 the maximum over x >= 0 is at x = 0: f* = -f(0) = -1, with slope and ratio zero.
        y = torch.clamp(y, min=-2)
        return y * y / 4 + y

    def _log_ratio(self, y: Tensor) -> Tensor:
        return log_where_positive(y / 2 + 1)


class HalfPearson(FDivergence):
    """f(x) = (x - 1)^2 / 2; conjugate y^2/2 + y for y >= -1, else -1/2; ratio max(0, y + 1):
    sparse (OptiDICE's chi-square).
    """

    kind: Literal["half_pearson"] = "half_pearson"

    def f(self, ratio: Tensor) -> Tensor:
        return (ratio - 1) ** 2 / 2

    def _conjugate(self, y: Tensor) -> Tensor:
        # Below -1 the maximum over x >= 0 is at x = 0: f* = -f(0) = -1/2, with slope and ratio
        # zero.
        y = torch.clamp(y, min=-1)
        return y * y / 2 + y

    def _log_ratio(self, y: Tensor) -> Tensor:
        return log_where_positive(y + 1)
