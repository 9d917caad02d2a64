"""The restricted conjugate of a convex f that is known only as a function: f'(x) = y solved for log
x by repeated division, f' by autograd.

f maps a float64 tensor of x > 0 to a tensor of the same shape. It is normalised here: f(x) - f(1) -
f'(1) (x - 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
# Of log x, in float64: e^-700 is the smallest ratio, and e^355 is past the largest with a finite
# square.
LOWEST, HIGHEST = -700.0, 355.0
# The interval between them is divided so often: 1055 / 32^13 is below the resolution at log x = 1.
# More parts in fewer rounds call f on larger tensors, but less often.
PARTS, ROUNDS = 32, 13


def value_and_slope(f: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and f'(x) before normalisation, detached; also where gradients are switched off."""
    # f' needs autograd even where the caller, such as `log_ratio`, has switched it off.
    with torch.inference_mode(False), torch.enable_grad():
        at = x.clone().requires_grad_()
        values = f(at)
        if not isinstance(values, Tensor) or values.shape != at.shape:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"expected f to map x of shape {tuple(at.shape)} to as many values, got {got}"
            )
        (slope,) = torch.autograd.grad(values.sum(), at)
    return values.detach(), slope


def normalised(f: Function) -> Function:
    """f(x) - f(1) - f'(1) (x - 1)."""

    def function(x: Tensor) -> Tensor:
        value, slope = value_and_slope(f, torch.ones((), dtype=x.dtype, device=x.device))
        return f(x) - value - slope * (x - 1)

    return function


def normalised_slope(f: Function, device: torch.device | None = None) -> Function:
    """log x -> f'(x) of the normalised f, float64; where autograd gives NaN, its limit: -inf
    below 1 and inf above.
    """
    _, at_one = value_and_slope(f, torch.ones((), dtype=torch.float64, device=device))

    def slope(log_x: Tensor) -> Tensor:
        _, slopes = value_and_slope(f, torch.exp(log_x))
        # of the dtype of x: two plain numbers would give torch's default one
        beyond = torch.full_like(log_x, math.inf).copysign(log_x)
        return torch.where(slopes.isnan(), beyond, slopes - at_one)

    return slope


def log_inverse_slope(f: Function, y: Tensor) -> Tensor:
    """log x with f'(x) = y, between `LOWEST` and `HIGHEST`; -inf where even f'(e^LOWEST) >= y:
    the ratio is zero there.
    """
    slope = normalised_slope(f, y.device)
    # f' grows, so every division keeps the part in which f' passes y: the parts whose right edge
    # has f' < y lie below it. Shapes: low (...), slope and below (..., PARTS - 1).
    zero = slope(torch.full((), LOWEST, dtype=y.dtype, device=y.device)) >= y
    low, width = torch.full_like(y, LOWEST), HIGHEST - LOWEST
    inner = torch.arange(1, PARTS, dtype=y.dtype, device=y.device)
    for _ in range(ROUNDS):
        width /= PARTS
        below = slope(low[..., None] + width * inner) < y[..., None]
        low = low + width * below.sum(-1)
    return torch.where(zero, -math.inf, low + width / 2)


def cut_slope(f: Function, before_pole: float, without_pole: float, resolution: float) -> float:
    """f'(x) at log x = `without_pole`; but with a pole at the smaller of `before_pole` and the last
    x = 2^k at which f' still grows.

    A pole: before `without_pole` doubling x changes f' by less than a share `resolution` of max(1,
    |f'|).
    """
    slope = normalised_slope(f)
    powers = torch.arange(
        int(without_pole / math.log(2)) + 1, dtype=torch.float64, device="cpu"
    ) * math.log(2)
    slopes = slope(powers)
    # `not >=`, so that a NaN counts as stuck. inf - inf gives one where f' has overflowed.
    stuck = ~(slopes.diff() >= resolution * slopes[:-1].abs().clamp(min=1))
    log_x = (
        min(before_pole, float(powers[stuck.nonzero()[0, 0]]))
        if bool(stuck.any())
        else without_pole
    )
    return float(slope(torch.tensor(log_x, dtype=torch.float64, device="cpu")))


def check_convex(f: Function, name: str) -> None:
    """Raise ValueError unless f' is finite at 1 and grows strictly on both sides of it, between
    1/8 and 8.
    """
    x = torch.logspace(-3, 3, 25, base=2, dtype=torch.float64, device="cpu")
    _, slopes = value_and_slope(f, x)
    if not bool(slopes.isfinite().all()):
        raise ValueError(
            f"f = {name} has the slope {slopes.tolist()} between x = 1/8 and 8: expected "
            "finite ones"
        )
    if not bool((slopes.diff() > 0).all()):
        worst = int(slopes.diff().argmin())
        raise ValueError(
            f"f = {name} is not strictly convex: f'({x[worst]:.3g}) = {slopes[worst]:.4g} and "
            f"f'({x[worst + 1]:.3g}) = {slopes[worst + 1]:.4g}. The ratio solves f'(x) = y, so "
            "f' must grow"
        )


class Conjugate(torch.autograd.Function):
    """f*(y) = x y - f(x) at f'(x) = y, whose gradient is x."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, f: Function) -> Tensor:
        # Near a pole x changes quickly with y: float32 would leave few digits.
        exact = y.detach().double()
        log_x = log_inverse_slope(f, exact)
        # Where the ratio is zero, f(0) is its limit from the right: f need not be defined at 0.
        x = torch.exp(log_x.clamp(min=LOWEST))
        ctx.save_for_backward(torch.exp(log_x).to(y.dtype))
        return (x * exact - normalised(f)(x).detach()).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Envelope theorem: d/dy max_x (x y - f(x)) = x, so nothing flows through the solver. There
        # is no second derivative: differentiating twice gives zero.
        (ratio,) = ctx.saved_tensors
        return gradient * ratio, None
