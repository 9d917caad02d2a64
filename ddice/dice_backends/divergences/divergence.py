"""f-divergences D_f(p || q) = E_q[f(p/q)], their restricted conjugates, and the distribution ratios
that they imply.

Every f is normalised so that f(1) = f'(1) = 0, hence ratio(0) = 1. The conjugate is the restricted
one, f*(y) = max_{x >= 0} (x y - f(x)), and ratio(y) = (f*)'(y) = max(0, (f')^{-1}(y)). Where it
grows beyond all bounds, at a pole or as an exponential, the conjugate goes on along its tangent
past a stated cut, and the ratio stays what it is there; `past_cut` counts it.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from ddice.core.config import Config


def exponent_cut(dtype: torch.dtype) -> float:
    """The largest log ratio: half the exponent range, so that a squared ratio stays finite.
    About 44 in float32 and 354 in float64.
    """
    # Second moments of the ratio, as in its variance, must not overflow.
    return math.log(torch.finfo(dtype).max) / 2


def log_where_positive(x: Tensor) -> Tensor:
    """log x, and -inf with a gradient of zero where x <= 0."""
    # The inner `where` keeps log away from x <= 0. Its infinite slope there, times the zero
    # gradient of the branch not taken, would be NaN.
    positive = x > 0
    return torch.where(positive, torch.log(torch.where(positive, x, 1)), -math.inf)


class FDivergence(Config, abstract=True):
    """One convex f. Elementwise on tensors of any shape; valid for every finite y in float32 and
    float64.

    One of your own gives a `kind`, `f`, its `_conjugate` and its `_log_ratio` up to the `cut`; what
    lies beyond is the same for all. `NumericDivergence` needs f alone. At a kink only one branch of
    a formula may have a slope (relu has none at 0, clamp has), or the gradient there is a sum of
    both.
    """

    kind: str

    @abstractmethod
    def f(self, ratio: Tensor) -> Tensor:
        """f(x) for x >= 0."""

    @abstractmethod
    def _conjugate(self, y: Tensor) -> Tensor:
        """f*(y) for y up to the cut."""

    @abstractmethod
    def _log_ratio(self, y: Tensor) -> Tensor:
        """log (f*)'(y) for y up to the cut."""

    def cut(self, dtype: torch.dtype) -> float:
        """The y past which the conjugate goes on along its tangent; infinite for most."""
        return math.inf

    def conjugate(self, y: Tensor) -> Tensor:
        """f*(y) = max over x >= 0 of x y - f(x)."""
        # f*(y) up to the cut c, then f*(c) + ratio(c) (y - c): convex and continuously
        # differentiable, with a bounded gradient. At y = c clamp passes a gradient and relu none,
        # so the slope there is counted once.
        cut = self.cut(y.dtype)
        if cut == math.inf:
            return self._conjugate(y)
        slope = torch.exp(self._log_ratio(torch.full((), cut, dtype=y.dtype, device=y.device)))
        return self._conjugate(torch.clamp(y, max=cut)) + slope * torch.relu(y - cut)

    def log_ratio(self, y: Tensor) -> Tensor:
        """log (f*)'(y): finite where the ratio is positive, -inf where it is zero, never NaN."""
        # Constant past the cut, the derivative of the tangent.
        cut = self.cut(y.dtype)
        return self._log_ratio(y if cut == math.inf else torch.clamp(y, max=cut))

    def ratio(self, y: Tensor) -> Tensor:
        """(f*)'(y) = exp(log_ratio(y)), in [0, inf)."""
        return torch.exp(self.log_ratio(y))

    def past_cut(self, y: Tensor) -> Tensor:
        """True where the tangent continuation acts; bool, the shape of y."""
        return y > self.cut(y.dtype)
