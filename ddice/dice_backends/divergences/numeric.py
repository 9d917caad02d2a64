"""A divergence from its f alone: the conjugate and the ratio are found by numbers."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_serializer, field_validator, model_validator
from torch import Tensor

from ddice.core.config import import_function
from ddice.core.plugins import require_trusted_function
from ddice.dice_backends.divergences import inversion
from ddice.dice_backends.divergences.divergence import FDivergence, exponent_cut


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
    def _check_function(cls, function: Any, info: ValidationInfo) -> Any:
        if isinstance(function, str) and ":" in function:
            require_trusted_function(function, "function", info)
            return function
        if callable(function):
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
        function: Callable[[Tensor], Tensor] = (
            import_function(self.function, "function")
            if isinstance(self.function, str)
            else self.function
        )
        return function

    def f(self, ratio: Tensor) -> Tensor:
        return inversion.normalised(self._f)(ratio.double()).to(ratio.dtype)

    def cut(self, dtype: torch.dtype) -> float:
        # 0.99: the solution is rounded, and must not land past the range where squares are finite.
        largest = 0.99 * exponent_cut(dtype)
        return inversion.cut_slope(
            self._f, math.log(self.max_ratio), largest, math.sqrt(torch.finfo(dtype).eps)
        )

    def _conjugate(self, y: Tensor) -> Tensor:
        conjugate: Callable[..., Tensor] = inversion.Conjugate.apply
        return conjugate(y, self._f)

    def _log_ratio(self, y: Tensor) -> Tensor:
        return inversion.log_inverse_slope(self._f, y.detach().double()).to(y.dtype)
