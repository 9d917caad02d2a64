"""The alpha family of Cressie and Read."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ddice.dice_backends.divergences.divergence import exponent_cut
from ddice.dice_backends.divergences.poles import _WithPole


class Alpha(_WithPole):
    """Cressie-Read: f(x) = (x^a - a x + a - 1) / (a (a - 1)); ratio [1 + (a - 1) y]_+^(1 / (a -
    1)); a > 1 is sparse, a < 1 has a pole.

    Conjugate (ratio^a - 1) / a; the pole is at y = 1 / (1 - a), zeros are up to y = -1 / (a - 1).
    `max_ratio` matters before a pole only.
    """

    kind: Literal["alpha"] = "alpha"
    order: float = Field(
        1.5,
        description=(
            "a; 2 is half Pearson, 0.5 twice the squared Hellinger; the limits 1 and 0 are kl "
            "and reverse_kl"
        ),
    )

    @field_validator("order")
    @classmethod
    def _check_order(cls, order: float) -> float:
        if order in (0, 1):
            raise ValueError(
                f"order {order} is a limit that has its own name: {'kl' if order else 'reverse_kl'}"
            )
        return order

    def f(self, ratio: Tensor) -> Tensor:
        return (torch.pow(ratio, self.order) - 1 - self.order * (ratio - 1)) / (
            self.order * (self.order - 1)
        )

    @property
    def pole(self) -> float:
        return math.inf if self.order > 1 else 1 / (1 - self.order)

    def slope(self, ratio: float) -> float:
        # f'(x) = (x^(a - 1) - 1) / (a - 1), with expm1 for orders near 1.
        return math.expm1((self.order - 1) * math.log(ratio)) / (self.order - 1)

    def cut(self, dtype: torch.dtype) -> float:
        """Without a pole: where the log ratio, or a / 1.5 times it, nears `exponent_cut`, as
        ratio^a in the conjugate must be finite too.
        """
        if self.order < 1:
            return super().cut(dtype)
        # 0.99: near a = 1 the log ratio loses digits.
        return self.slope(math.exp(0.99 * exponent_cut(dtype) / max(1, self.order / 1.5)))

    def _where_positive(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where 1 + (a - 1) y > 0, and its logarithm there."""
        x = (self.order - 1) * y
        # log1p never sees x <= -1, where its slope would make the gradient NaN.
        positive = x > -1
        return positive, torch.log1p(torch.where(positive, x, 0))

    def _conjugate(self, y: Tensor) -> Tensor:
        a = self.order
        positive, log_base = self._where_positive(y)
        exponent = a / (a - 1) * log_base
        # Both are ratio^a - 1; expm1 keeps the digits of the value near 0, exp those of the slope
        # where the ratio vanishes.
        power = torch.where(exponent > -1, torch.expm1(exponent), torch.exp(exponent) - 1)
        # Where the ratio is zero, f* = -f(0) = -1 / a.
        return torch.where(positive, power / a, -1 / a)

    def _log_ratio(self, y: Tensor) -> Tensor:
        positive, log_base = self._where_positive(y)
        return torch.where(positive, log_base / (self.order - 1), -math.inf)
