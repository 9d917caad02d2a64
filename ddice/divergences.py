"""f-divergences D_f(p || q) = E_q[f(p/q)], their restricted conjugates, and the distribution ratios that they imply.

Every f is normalised so that f(1) = f'(1) = 0, hence ratio(0) = 1. The conjugate is the restricted one,
f*(y) = max_{x >= 0} (x y - f(x)), and ratio(y) = (f*)'(y) = max(0, (f')^{-1}(y)).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ddice.config import Config, unknown_name


def exponent_cut(dtype: torch.dtype) -> float:
    """The y past which exponentials go on along their tangent: half the exponent range, so that a squared ratio stays finite.

    About 44 in float32 and 354 in float64.
    """
    return math.log(torch.finfo(dtype).max) / 2


def _exp(y: Tensor) -> Tensor:
    """e^y, constant past the cut."""
    return torch.exp(torch.clamp(y, max=exponent_cut(y.dtype)))


class FDivergence(Config):
    """One convex f. Elementwise on tensors of any shape; valid for every finite y in float32 and float64."""

    @abstractmethod
    def f(self, ratio: Tensor) -> Tensor:
        """f(x) for x >= 0."""

    @abstractmethod
    def conjugate(self, y: Tensor) -> Tensor:
        """f*(y) = max over x >= 0 of x y - f(x)."""

    @abstractmethod
    def log_ratio(self, y: Tensor) -> Tensor:
        """log (f*)'(y): finite where the ratio is positive, -inf where it is zero, never NaN."""

    def ratio(self, y: Tensor) -> Tensor:
        """(f*)'(y) = exp(log_ratio(y)), in [0, inf)."""
        return torch.exp(self.log_ratio(y))

    def past_cut(self, y: Tensor) -> Tensor:
        """True where the tangent continuation acts; bool, the shape of y."""
        return torch.zeros_like(y, dtype=torch.bool)


class KL(FDivergence):
    """f(x) = x log x - x + 1; conjugate e^y - 1; ratio e^y. Past `exponent_cut` the conjugate goes on along its tangent."""

    kind: Literal["kl"] = "kl"

    def f(self, ratio: Tensor) -> Tensor:
        return torch.xlogy(ratio, ratio) - ratio + 1

    def conjugate(self, y: Tensor) -> Tensor:
        excess = torch.relu(y - exponent_cut(y.dtype))  # relu, not clamp: at the cut itself only one branch may have a slope
        return torch.expm1(torch.clamp(y, max=exponent_cut(y.dtype))) + excess * _exp(y)

    def log_ratio(self, y: Tensor) -> Tensor:
        return torch.clamp(y, max=exponent_cut(y.dtype))

    def past_cut(self, y: Tensor) -> Tensor:
        return y > exponent_cut(y.dtype)


class Pearson(FDivergence):
    """Pearson chi^2: f(x) = (x - 1)^2; conjugate y^2/4 + y for y >= -2, else -1; ratio max(0, y/2 + 1): sparse."""

    kind: Literal["pearson"] = "pearson"

    def f(self, ratio: Tensor) -> Tensor:
        return (ratio - 1) ** 2

    def conjugate(self, y: Tensor) -> Tensor:
        y = torch.clamp(y, min=-2)
        return y * y / 4 + y

    def log_ratio(self, y: Tensor) -> Tensor:
        return torch.log(torch.clamp(y / 2 + 1, min=0))


class HalfPearson(FDivergence):
    """f(x) = (x - 1)^2 / 2; conjugate y^2/2 + y for y >= -1, else -1/2; ratio max(0, y + 1): sparse (OptiDICE's chi-square)."""

    kind: Literal["half_pearson"] = "half_pearson"

    def f(self, ratio: Tensor) -> Tensor:
        return (ratio - 1) ** 2 / 2

    def conjugate(self, y: Tensor) -> Tensor:
        y = torch.clamp(y, min=-1)
        return y * y / 2 + y

    def log_ratio(self, y: Tensor) -> Tensor:
        return torch.log(torch.clamp(y + 1, min=0))


class _KLBelow(FDivergence):
    """x log x - x + 1 below 1 and curvature * (x - 1)^2 / 2 above: positive ratios that grow only linearly."""

    @property
    @abstractmethod
    def curvature(self) -> float:
        """f'' just above x = 1."""

    def f(self, ratio: Tensor) -> Tensor:
        below = torch.clamp(ratio, max=1)
        return torch.where(ratio < 1, torch.xlogy(below, below) - below + 1, self.curvature * (ratio - 1) ** 2 / 2)

    def conjugate(self, y: Tensor) -> Tensor:
        above = torch.relu(y)  # relu, not clamp: at y = 0 both clamps would pass their gradient, and the slope would be 2
        return torch.expm1(torch.clamp(y, max=0)) + above + above * above / (2 * self.curvature)

    def log_ratio(self, y: Tensor) -> Tensor:
        return torch.clamp(y, max=0) + torch.log1p(torch.relu(y) / self.curvature)


class Piecewise(_KLBelow):
    """f(x) = x log x - x + 1 below 1, (x - 1)^2 above; conjugate e^y - 1 | y^2/4 + y; ratio e^y | y/2 + 1 (arXiv 2407.20109)."""

    kind: Literal["piecewise"] = "piecewise"

    @property
    def curvature(self) -> float:
        return 2.0


class SoftChi2(_KLBelow):
    """f(x) = x log x - x + 1 below 1, (x - 1)^2 / 2 above; conjugate e^y - 1 | y^2/2 + y; ratio e^y | y + 1 (arXiv 2106.10783)."""

    kind: Literal["soft_chi2"] = "soft_chi2"

    @property
    def curvature(self) -> float:
        return 1.0


BUILT_IN: tuple[type[FDivergence], ...] = (KL, Pearson, HalfPearson, Piecewise, SoftChi2)


def _from_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = [cls.model_fields["kind"].default for cls in BUILT_IN]
    if value not in names:
        raise ValueError(unknown_name(value, names, "divergence"))
    return {"kind": value}


Divergence = Annotated[Annotated[KL | Pearson | HalfPearson | Piecewise | SoftChi2, Field(discriminator="kind")], BeforeValidator(_from_name)]
