"""Total variation, by a smooth surrogate."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.dice_backends.divergences.divergence import log_where_positive
from ddice.dice_backends.divergences.poles import _WithPole


class TotalVariation(_WithPole):
    """A smooth surrogate of |x - 1| / 2, which has no derivative at 1: f(x) = (sqrt((x - 1)^2 +
    d^2) - d) / 2 with smoothing d.

    f is at most d / 2 below |x - 1| / 2. Conjugate y + d/2 (1 - sqrt(1 - 4 y^2)); ratio 1 + 2 d y /
    sqrt(1 - 4 y^2); pole at y = 1/2; zero up to y = -1 / (2 sqrt(1 + d^2)), where the conjugate
    stays f*(y) = -f(0).
    """

    kind: Literal["total_variation"] = "total_variation"
    smoothing: float = Field(
        0.1, ge=0.01, description="d; the ratio tends to 0 or 1 as it vanishes"
    )

    @property
    def _zero(self) -> float:
        return -0.5 / math.sqrt(1 + self.smoothing**2)

    def f(self, ratio: Tensor) -> Tensor:
        # (sqrt((x - 1)^2 + d^2) - d) / 2, without its cancellation near x = 1.
        square = (ratio - 1) ** 2
        return square / (torch.sqrt(square + self.smoothing**2) + self.smoothing) / 2

    @property
    def pole(self) -> float:
        return 0.5

    def slope(self, ratio: float) -> float:
        return (ratio - 1) / math.hypot(ratio - 1, self.smoothing) / 2

    def _conjugate(self, y: Tensor) -> Tensor:
        y = torch.clamp(y, min=self._zero)
        # 1 - root = 4 y^2 / (1 + root), without its cancellation near y = 0; root in factors,
        # which keeps its digits near the pole.
        return y + 2 * self.smoothing * y * y / (1 + torch.sqrt((1 - 2 * y) * (1 + 2 * y)))

    def _log_ratio(self, y: Tensor) -> Tensor:
        y = torch.clamp(y, min=self._zero)
        root = torch.sqrt((1 - 2 * y) * (1 + 2 * y))
        # 1 + 2 d y / root = (1 - 4 (1 + d^2) y^2) / (root (root - 2 d y)): the numerator, in
        # factors, keeps its digits where it vanishes.
        numerator = (1 - y / self._zero) * (1 + y / self._zero)
        # This branch is taken for negative y only. The clamp keeps the denominator from vanishing
        # at positive y, where a NaN would spoil the gradient of the other.
        near_zero = log_where_positive(
            numerator / (root * (root - 2 * self.smoothing * torch.clamp(y, max=0)))
        )
        # Halfway between the zero and y = 0 both forms keep their digits.
        above = torch.clamp(y, min=self._zero / 2)
        return torch.where(y < above, near_zero, torch.log1p(2 * self.smoothing * above / root))
