"""f-divergences D_f(p || q) = E_q[f(p/q)], their restricted conjugates, and the distribution ratios
that they imply.

Every f is normalised so that f(1) = f'(1) = 0, hence ratio(0) = 1. The conjugate is the restricted
one, f*(y) = max_{x >= 0} (x y - f(x)), and ratio(y) = (f*)'(y) = max(0, (f')^{-1}(y)). Where it
grows beyond all bounds, at a pole or as an exponential, the conjugate goes on along its tangent
past a stated cut, and the ratio stays what it is there; `past_cut` counts it.
"""

from __future__ import annotations

import importlib
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, field_serializer, field_validator, model_validator
from torch import Tensor

from ddice.core.config import Config, import_function, unknown_name
from ddice.dice_backends import inversion


def exponent_cut(dtype: torch.dtype) -> float:
    """The largest log ratio: half the exponent range, so that a squared ratio stays finite.
    About 44 in float32 and 354 in float64.
    """
    return math.log(torch.finfo(dtype).max) / 2


def pole_cut(pole: float, dtype: torch.dtype) -> float:
    """The y closest to a pole at which y is trusted: 64 machine epsilons before it, where
    rounding changes the distance by 1 %.
    """
    return pole * (1 - 64 * torch.finfo(dtype).eps)


def log_where_positive(x: Tensor) -> Tensor:
    """log x, and -inf with a gradient of zero where x <= 0."""
    positive = x > 0
    return torch.where(positive, torch.log(torch.where(positive, x, 1)), -math.inf)


class FDivergence(Config):
    """One convex f. Elementwise on tensors of any shape; valid for every finite y in float32 and
    float64.

    A member states f, its conjugate and its log ratio up to the cut; what lies beyond is the same
    for all. At a kink only one branch of a formula may have a slope (relu has none at 0, clamp
    has), or the gradient there is a sum of both.
    """

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
        cut = self.cut(y.dtype)
        if cut == math.inf:
            return self._conjugate(y)
        slope = torch.exp(self._log_ratio(torch.full((), cut, dtype=y.dtype, device=y.device)))
        return self._conjugate(torch.clamp(y, max=cut)) + slope * torch.relu(y - cut)

    def log_ratio(self, y: Tensor) -> Tensor:
        """log (f*)'(y): finite where the ratio is positive, -inf where it is zero, never NaN."""
        cut = self.cut(y.dtype)
        return self._log_ratio(y if cut == math.inf else torch.clamp(y, max=cut))

    def ratio(self, y: Tensor) -> Tensor:
        """(f*)'(y) = exp(log_ratio(y)), in [0, inf)."""
        return torch.exp(self.log_ratio(y))

    def past_cut(self, y: Tensor) -> Tensor:
        """True where the tangent continuation acts; bool, the shape of y."""
        return y > self.cut(y.dtype)


class KL(FDivergence):
    """f(x) = x log x - x + 1; conjugate e^y - 1; ratio e^y. Past `exponent_cut` the conjugate
    goes on along its tangent.
    """

    kind: Literal["kl"] = "kl"

    def f(self, ratio: Tensor) -> Tensor:
        return torch.xlogy(ratio, ratio) - ratio + 1

    def cut(self, dtype: torch.dtype) -> float:
        return exponent_cut(dtype)

    def _conjugate(self, y: Tensor) -> Tensor:
        return torch.expm1(y)

    def _log_ratio(self, y: Tensor) -> Tensor:
        return y


class _WithPole(FDivergence):
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


class Pearson(FDivergence):
    """Pearson chi^2: f(x) = (x - 1)^2; conjugate y^2/4 + y for y >= -2, else -1; ratio max(0,
    y/2 + 1): sparse.
    """

    kind: Literal["pearson"] = "pearson"

    def f(self, ratio: Tensor) -> Tensor:
        return (ratio - 1) ** 2

    def _conjugate(self, y: Tensor) -> Tensor:
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
        y = torch.clamp(y, min=-1)
        return y * y / 2 + y

    def _log_ratio(self, y: Tensor) -> Tensor:
        return log_where_positive(y + 1)


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
        return 1 - ratio**-0.5

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
        y = torch.clamp(y, min=-3)
        root = torch.sqrt(1 - y)
        return y * (3 - root) / (1 + root)

    def _log_ratio(self, y: Tensor) -> Tensor:
        positive = y > -3
        y = torch.where(positive, y, 0)
        root = torch.sqrt(1 - y)
        # 2 / root - 1 without its cancellation at y = -3
        return torch.where(
            positive, torch.log(3 + y) - torch.log(2 + root) - torch.log(root), -math.inf
        )


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
        return math.expm1((self.order - 1) * math.log(ratio)) / (self.order - 1)

    def cut(self, dtype: torch.dtype) -> float:
        """Without a pole: where the log ratio, or a / 1.5 times it, nears `exponent_cut`, as
        ratio^a in the conjugate must be finite too.
        """
        if self.order < 1:
            return super().cut(dtype)
        return self.slope(
            math.exp(0.99 * exponent_cut(dtype) / max(1, self.order / 1.5))
        )  # 0.99: near a = 1 the log ratio loses digits

    def _where_positive(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where 1 + (a - 1) y > 0, and its logarithm there."""
        x = (self.order - 1) * y
        positive = x > -1
        return positive, torch.log1p(torch.where(positive, x, 0))

    def _conjugate(self, y: Tensor) -> Tensor:
        a = self.order
        positive, log_base = self._where_positive(y)
        exponent = a / (a - 1) * log_base
        # Both are ratio^a - 1; expm1 keeps the digits of the value near 0, exp those of the slope
        # where the ratio vanishes.
        power = torch.where(exponent > -1, torch.expm1(exponent), torch.exp(exponent) - 1)
        return torch.where(positive, power / a, -1 / a)

    def _log_ratio(self, y: Tensor) -> Tensor:
        positive, log_base = self._where_positive(y)
        return torch.where(positive, log_base / (self.order - 1), -math.inf)


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
        square = (ratio - 1) ** 2
        return square / (torch.sqrt(square + self.smoothing**2) + self.smoothing) / 2

    @property
    def pole(self) -> float:
        return 0.5

    def slope(self, ratio: float) -> float:
        return (ratio - 1) / math.hypot(ratio - 1, self.smoothing) / 2

    def _conjugate(self, y: Tensor) -> Tensor:
        y = torch.clamp(y, min=self._zero)
        return y + 2 * self.smoothing * y * y / (1 + torch.sqrt((1 - 2 * y) * (1 + 2 * y)))

    def _log_ratio(self, y: Tensor) -> Tensor:
        y = torch.clamp(y, min=self._zero)
        root = torch.sqrt((1 - 2 * y) * (1 + 2 * y))
        # 1 + 2 d y / root = (1 - 4 (1 + d^2) y^2) / (root (root - 2 d y)): the numerator, in
        # factors, keeps its digits where it vanishes.
        numerator = (1 - y / self._zero) * (1 + y / self._zero)
        near_zero = log_where_positive(
            numerator / (root * (root - 2 * self.smoothing * torch.clamp(y, max=0)))
        )
        above = torch.clamp(y, min=self._zero / 2)
        return torch.where(y < above, near_zero, torch.log1p(2 * self.smoothing * above / root))


class _KLBelow(FDivergence):
    """x log x - x + 1 below 1 and curvature * (x - 1)^2 / 2 above: positive ratios that grow
    only linearly.
    """

    @property
    @abstractmethod
    def curvature(self) -> float:
        """f'' just above x = 1."""

    def f(self, ratio: Tensor) -> Tensor:
        below = torch.clamp(ratio, max=1)
        return torch.where(
            ratio < 1, torch.xlogy(below, below) - below + 1, self.curvature * (ratio - 1) ** 2 / 2
        )

    def _conjugate(self, y: Tensor) -> Tensor:
        above = torch.relu(
            y
            # relu, not clamp: at y = 0 both clamps would pass their gradient, and the slope would
            # be 2
        )
        return torch.expm1(torch.clamp(y, max=0)) + above + above * above / (2 * self.curvature)

    def _log_ratio(self, y: Tensor) -> Tensor:
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


class NumericDivergence(FDivergence):
    """A divergence of your own from its f alone: the conjugate is computed by solving f'(x) = y for
    log x, with autograd for f'.

    `function` maps a float64 tensor of x > 0 to f(x), elementwise, strictly convex, differentiable
    by autograd; a constant and a multiple of x - 1 are subtracted so that f(1) = f'(1) = 0. The
    gradient of `conjugate` is `ratio`; `log_ratio` itself carries no gradient. All is computed in
    float64 and to about ten digits. The ratio is taken for zero below e^-700. Where doubling the
    ratio soon changes f' by less than sqrt(machine epsilon), f has a pole, and the cut is there or
    at `max_ratio`, whichever comes first; else it is where the log ratio nears `exponent_cut`. A
    recipe knows the function by its name, so that trained parts in the cache do not notice when its
    formula changes: rename it then.
    """

    kind: Literal["numeric"] = "numeric"
    function: Any = Field(description='x -> f(x), a callable or its "module:function"')
    max_ratio: float = Field(
        100.0,
        gt=1,
        description="before a pole: the ratio past which the conjugate goes on along its tangent",
    )

    @field_validator("function", mode="before")
    @classmethod
    def _check_function(cls, function: Any) -> Any:
        if callable(function) or (isinstance(function, str) and ":" in function):
            return function
        raise ValueError(
            f'expected a callable x -> f(x) or its "module:function", got {function!r}'
        )

    @model_validator(mode="after")
    def _check_convex(self) -> Any:
        inversion.check_convex(self._f, name=str(self._name(self.function)))
        return self

    @staticmethod
    def _name(function: Any) -> Any:
        if isinstance(function, str):
            return function
        module, name = (
            getattr(function, "__module__", "?"),
            getattr(function, "__qualname__", repr(function)),
        )
        found = getattr(importlib.import_module(module), name, None) if module != "?" else None
        return f"{module}:{name}" if found is function else f"callable:{module}:{name}"

    @field_serializer("function")
    def _serialise(self, function: Any) -> Any:
        return self._name(function)

    @property
    def _f(self) -> Callable[[Tensor], Tensor]:
        return (
            import_function(self.function, "function")
            if isinstance(self.function, str)
            else self.function
        )

    def f(self, ratio: Tensor) -> Tensor:
        return inversion.normalised(self._f)(ratio.double()).to(ratio.dtype)

    def cut(self, dtype: torch.dtype) -> float:
        largest = 0.99 * exponent_cut(dtype)  # the solution is rounded
        return inversion.cut_slope(
            self._f, math.log(self.max_ratio), largest, math.sqrt(torch.finfo(dtype).eps)
        )

    def _conjugate(self, y: Tensor) -> Tensor:
        values: Tensor = inversion.Conjugate.apply(y, self._f)
        return values

    def _log_ratio(self, y: Tensor) -> Tensor:
        return inversion.log_inverse_slope(self._f, y.detach().double()).to(y.dtype)


BUILT_IN: tuple[type[FDivergence], ...] = (
    KL,
    ReverseKL,
    Pearson,
    HalfPearson,
    Neyman,
    SoftChi2,
    Piecewise,
    SquaredHellinger,
    JensenShannon,
    LeCam,
    Alpha,
    TotalVariation,
)


def _from_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if ":" in value:
        return {"kind": "numeric", "function": value}
    names = [cls.model_fields["kind"].default for cls in BUILT_IN]
    if value not in names:
        raise ValueError(unknown_name(value, names, "divergence"))
    return {"kind": value}


_Member = (
    KL
    | ReverseKL
    | Pearson
    | HalfPearson
    | Neyman
    | SoftChi2
    | Piecewise
    | SquaredHellinger
    | JensenShannon
    | LeCam
    | Alpha
    | TotalVariation
)
Divergence = Annotated[
    Annotated[_Member | NumericDivergence, Field(discriminator="kind")], BeforeValidator(_from_name)
]
