"""A divergence from outside: a quadratic of any curvature."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.dice_backends.divergences import FDivergence, log_where_positive


class Quadratic(FDivergence):
    """f(x) = c (x - 1)^2 / 2; conjugate y + y^2 / (2 c) for y > -c, else -c / 2; ratio
    max(0, 1 + y / c).
    """

    kind: Literal["quadratic"] = "quadratic"
    curvature: float = Field(3.0, gt=0)

    def f(self, ratio: Tensor) -> Tensor:
        return self.curvature / 2 * (ratio - 1) ** 2

    def _conjugate(self, y: Tensor) -> Tensor:
        ratio = torch.relu(1 + y / self.curvature)
        return self.curvature / 2 * (ratio**2 - 1)

    def _log_ratio(self, y: Tensor) -> Tensor:
        return log_where_positive(1 + y / self.curvature)
