"""Errors and order of convergence of a solver on problems whose exact flow is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ddice.diffusion.guidance import guided
from ddice.diffusion.schedule import NoiseSchedule, VariancePreserving
from ddice.diffusion.solvers import Denoiser, Spacing
from ddice.testing.gaussian import ExponentialRatio, GaussianMixture, exact_flow

PRIOR = GaussianMixture.of([1, 1], [[-0.6], [0.6]], [[0.2], [0.2]])
RATIO = ExponentialRatio.bumps([1.0, 0.3], [[0.5], [-0.3]], [[0.3], [0.2]])
COUNTS = (65, 129, 257, 513)
# all steps of a grid quadratic in t then shrink alike in log-SNR; down to 1e-3 the last,
# first-order one is long for thousands of steps
END = 0.1


def noise_grid(count: int) -> Tensor:
    """`count` quantiles of the standard normal distribution, (count, 1), float64: its samples
    without their noise.
    """
    levels = (torch.arange(count, dtype=torch.float64, device="cpu")[:, None] + 0.5) / count
    grid: Tensor = torch.special.ndtri(levels)
    return grid


def problem(scale: float, schedule: NoiseSchedule) -> Denoiser:
    """The exact noise prediction of two peaks times a mixture ratio, guided with `scale`."""
    return guided(PRIOR.denoiser(schedule), PRIOR.gradient(RATIO, schedule), schedule, scale)


@cache
def _truth(scale: float, schedule: NoiseSchedule, count: int) -> Tensor:
    return exact_flow(
        problem(scale, schedule), noise_grid(count), schedule, steps=400
    )  # 1e-7 from that of 2000


def solver_error(
    solver: Any, scale: float, schedule: NoiseSchedule, count: int = 201
) -> tuple[float, float]:
    """(root mean square, largest) error of the actions of `solver` on the guided mixture,
    against its exact flow, over `count` quantiles of noise.
    """
    error = solver.integrate(problem(scale, schedule), noise_grid(count), schedule) - _truth(
        scale, schedule, count
    )
    return float(error.square().mean().sqrt()), float(error.abs().max())


def order_of(
    counts: Sequence[int],
    errors: Sequence[float],
) -> float:
    """Minus the slope of log(error) against log(count), by least squares."""
    x = torch.tensor(counts, dtype=torch.float64, device="cpu").log()
    y = torch.tensor(errors, dtype=torch.float64, device="cpu").log()
    x = x - x.mean()
    return -float((x * y).sum() / (x * x).sum())


def measured_order(
    solver_class: Any, spacing: Spacing = "quadratic", *, scale: float = 1.0
) -> float:
    """The slope of -log(largest error) against log(evaluations), 65 to 513 of them, on a guided
    mixture from t = 1 to t = 0.1.

    1 for a first-order solver, 2 for a second-order one. `solver_class(evaluations=, spacing=)` has
    integrate(denoiser, x, schedule).
    """
    schedule = VariancePreserving(t_min=END)
    errors = [
        solver_error(solver_class(evaluations=n, spacing=spacing), scale, schedule, 21)[1]
        for n in COUNTS
    ]
    return order_of(COUNTS, errors)
