"""A self-test for any f-divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddice.dice_backends.divergences import FDivergence
from ddice.testing.expect import expect, expect_close, name_of, run_checks


def _slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(at).sum(), at)
    return gradient


def _inside(divergence: FDivergence, dtype: torch.dtype = torch.float64) -> Tensor:
    """y from -6 to 3, or to 90 % of an earlier cut, among them 0."""
    top = min(3.0, 0.9 * divergence.cut(dtype))
    below = torch.linspace(-6, 0, 49, dtype=dtype, device="cpu")
    above = torch.linspace(0, top, 25, dtype=dtype, device="cpu")[1:]
    return torch.cat([below, above])


def _wide(divergence: FDivergence, dtype: torch.dtype) -> Tensor:
    """y from -1e6 to 1e6, among them 0 and the cut."""
    sizes = torch.logspace(-6, 6, 25, dtype=dtype, device="cpu")
    zero = torch.zeros(1, dtype=dtype, device="cpu")
    cut = divergence.cut(dtype)
    cuts = torch.tensor([cut] if cut < 1e6 else [], dtype=dtype, device="cpu")
    return torch.cat([-sizes, zero, sizes, cuts]).sort().values


def f_is_normalised(divergence: FDivergence) -> None:
    """f(1) = f'(1) = 0 and f > 0 elsewhere, so that ratio(0) = 1 and conjugate(0) = 0."""
    one = torch.ones(1, dtype=torch.float64, device="cpu")
    zero = torch.zeros(1, dtype=torch.float64, device="cpu")
    expect_close(divergence.f(one), zero, "f(1)", atol=1e-9)
    expect_close(_slope(divergence.f, one), zero, "f'(1)", atol=1e-9)
    expect_close(divergence.conjugate(zero), zero, "conjugate(0)", atol=1e-9)
    expect_close(divergence.ratio(zero), one, "ratio(0)", atol=1e-9)
    elsewhere = divergence.f(torch.tensor([0.1, 0.5, 2.0, 10.0], dtype=torch.float64, device="cpu"))
    expect(
        bool((elsewhere > 0).all()),
        f"f must be positive away from 1, got {elsewhere.tolist()} at 0.1, 0.5, 2, 10",
    )


def ratio_is_the_slope_of_the_conjugate(divergence: FDivergence) -> None:
    """The gradient of `conjugate` is `ratio`, at kinks and at the cut too."""
    for dtype, rtol in ((torch.float64, 1e-6), (torch.float32, 2e-3)):
        for y in (_inside(divergence, dtype), _wide(divergence, dtype)):
            slope = _slope(divergence.conjugate, y)
            ratio = divergence.ratio(y)
            worst = int((slope - ratio).abs().nan_to_num(math.inf).argmax())
            expect_close(
                slope,
                ratio,
                f"the slope of the conjugate in {dtype}, worst at y = {y[worst]:.4g}",
                rtol=rtol,
                atol=1e-6,
            )


def fenchel_equality_holds_at_the_ratio(divergence: FDivergence) -> None:
    """f(x) + f*(y) = x y at x = ratio(y), and f(x) + f*(y) >= x y for other x >= 0."""
    y = _inside(divergence)
    x = divergence.ratio(y)
    conjugate = divergence.conjugate(y)
    positive = x > 1e-12
    gap = (divergence.f(x.clamp(min=1e-12)) + conjugate - x * y)[positive]
    expect_close(gap, torch.zeros_like(gap), "f(x) + f*(y) - x y at x = ratio(y)", atol=1e-7)
    for other in (x * 0.9 + 1e-9, x * 1.1 + 0.01, torch.full_like(x, 5.0)):
        gap = divergence.f(other) + conjugate - other * y
        worst = int(gap.argmin())
        expect(
            float(gap[worst]) > -1e-7,
            f"f(x) + f*(y) - x y = {gap[worst]:.3g} < 0 at x = {other[worst]:.4g}, y = "
            f"{y[worst]:.4g}",
        )


def ratio_never_decreases(divergence: FDivergence) -> None:
    """The conjugate is convex: its slope grows with y."""
    for dtype in (torch.float64, torch.float32):
        for y in (_inside(divergence, dtype), _wide(divergence, dtype)):
            ratio = divergence.ratio(y)
            fall = ratio[:-1] - ratio[1:] - 1e-5 * ratio[1:]
            worst = int(fall.argmax())
            expect(
                float(fall[worst]) <= 0,
                f"ratio falls from {ratio[worst]:.6g} to {ratio[worst + 1]:.6g} at y = "
                f"{y[worst]:.4g} in {dtype}",
            )


def log_ratio_is_the_logarithm(divergence: FDivergence) -> None:
    """log_ratio is finite where the ratio is positive, -inf where it is zero, never NaN, and
    ratio is its exp.
    """
    for dtype in (torch.float64, torch.float32):
        y = torch.cat([_inside(divergence, dtype), _wide(divergence, dtype)])
        ratio = divergence.ratio(y)
        log_ratio = divergence.log_ratio(y)
        expect(
            not bool(log_ratio.isnan().any()),
            f"log_ratio is NaN at y = {y[log_ratio.isnan()][:5].tolist()} in {dtype}",
        )
        expect(
            bool((log_ratio < math.inf).all()),
            f"log_ratio is inf at y = {y[log_ratio == math.inf][:5].tolist()} in {dtype}",
        )
        lost = (ratio > 0) & (log_ratio == -math.inf)
        expect(
            not bool(lost.any()),
            f"log_ratio is -inf where the ratio is positive, at y = {y[lost][:5].tolist()} in "
            f"{dtype}",
        )
        expect(
            bool((ratio >= 0).all()),
            f"the ratio is negative at y = {y[ratio < 0][:5].tolist()} in {dtype}",
        )
        expect_close(
            ratio, log_ratio.exp(), f"ratio against exp(log_ratio) in {dtype}", rtol=1e-5, atol=0
        )


def everything_is_finite_up_to_a_million(divergence: FDivergence) -> None:
    """|y| up to 1e6 in float32 and float64: conjugate, its gradient and ratio are finite, and
    keep dtype and shape.
    """
    for dtype in (torch.float64, torch.float32):
        y = _wide(divergence, dtype)
        found = {
            "conjugate": divergence.conjugate(y),
            "the slope": _slope(divergence.conjugate, y),
            "ratio": divergence.ratio(y),
            "log_ratio": divergence.log_ratio(y),
        }
        for name, value in found.items():
            expect(value.dtype == dtype, f"{name} of {dtype} is {value.dtype}")
            if name != "log_ratio":
                expect(
                    bool(value.isfinite().all()),
                    f"{name} is not finite at y = {y[~value.isfinite()][:5].tolist()} in {dtype}",
                )
            together = getattr(divergence, name, divergence.conjugate)(y[:24].reshape(2, 3, 4))
            expect(
                together.shape == (2, 3, 4),
                f"{name} of shape (2, 3, 4) has shape {tuple(together.shape)}",
            )
        expect(
            divergence.past_cut(y).dtype == torch.bool,
            f"past_cut must be bool, got {divergence.past_cut(y).dtype}",
        )


def single_precision_agrees_with_double(divergence: FDivergence) -> None:
    """Conjugate and ratio of the same y in float32 and float64."""
    y = _inside(divergence, torch.float32)
    for name in ("conjugate", "ratio"):
        function = getattr(divergence, name)
        expect_close(
            function(y).double(), function(y.double()), f"{name} in float32", rtol=1e-4, atol=1e-6
        )


DivergenceCheck = Callable[[FDivergence], None]
DIVERGENCE_CHECKS: tuple[DivergenceCheck, ...] = (
    f_is_normalised,
    log_ratio_is_the_logarithm,
    everything_is_finite_up_to_a_million,
    ratio_never_decreases,
    ratio_is_the_slope_of_the_conjugate,
    fenchel_equality_holds_at_the_ratio,
    single_precision_agrees_with_double,
)


def check_divergence(
    divergence: FDivergence,
    *,
    checks: Sequence[DivergenceCheck] = DIVERGENCE_CHECKS,
) -> None:
    """All of `DIVERGENCE_CHECKS`, or those named, for one divergence: built in, numeric or a
    class of your own. Raises AssertionError that says what failed where.
    """
    run_checks(checks, name_of(divergence), divergence)
