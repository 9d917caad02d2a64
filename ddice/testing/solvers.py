"""Conformance of solvers of the diffusion ODE, on data for which it is solved exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddice.diffusion.schedule import NoiseSchedule, VariancePreserving
from ddice.testing.expect import (
    expect,
    expect_close,
    name_of,
    run_checks,
    survives_json,
)
from ddice.testing.order import order_of

MEAN, STD = 0.3, 0.4  # of the clean actions
COUNTS = (65, 129, 257)


def _noise(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(-2.5, 2.5, 21, dtype=dtype, device="cpu")[:, None]


class _Gaussian:
    """E[noise | a_t] for clean actions ~ N(MEAN, std^2); with std = 0 they are one point.
    Records the times of its calls.
    """

    def __init__(self, schedule: NoiseSchedule, std: float = STD):
        self.schedule = schedule
        self.std = std
        self.times: list[float] = []

    def _deviation(self, t: Tensor) -> Tensor:
        return torch.sqrt((self.schedule.alpha(t) * self.std) ** 2 + self.schedule.sigma(t) ** 2)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        expect(
            t.shape == (),
            f"a denoiser gets the time as a scalar tensor, got shape {tuple(t.shape)}",
        )
        self.times.append(float(t))
        return (
            self.schedule.sigma(t) * (x - self.schedule.alpha(t) * MEAN) / self._deviation(t) ** 2
        )

    def flow(self, x: Tensor) -> Tensor:
        """Where the exact ODE takes x from t = 1 to t_min."""
        start, end = (
            torch.tensor(t, dtype=x.dtype, device="cpu") for t in (1.0, self.schedule.t_min)
        )
        centred = x - self.schedule.alpha(start) * MEAN
        return (
            self.schedule.alpha(end) * MEAN
            + self._deviation(end) / self._deviation(start) * centred
        )


def _with(config: Any, evaluations: int) -> Any:
    """The same solver with other evaluations, and a spacing that reaches small times quickly
    where it has a choice.
    """
    changes: dict[str, Any] = {"evaluations": evaluations}
    if getattr(config, "spacing", None) == "uniform":
        changes["spacing"] = "quadratic"
    return config.model_copy(update=changes)


def evaluations_are_counted(config: Any, order: int) -> None:
    """`evaluations` calls of the denoiser, at falling times from 1, none below t_min."""
    for count in (1, 2, 3, 8, 15):
        denoiser = _Gaussian(VariancePreserving())
        config.model_copy(update={"evaluations": count}).integrate(
            denoiser, _noise(), denoiser.schedule
        )
        times = denoiser.times
        expect(len(times) == count, f"{count} evaluations call the denoiser {len(times)} times")
        expect(
            times == sorted(times, reverse=True) and abs(times[0] - 1) < 1e-6,
            f"times must fall from 1, got {times}",
        )
        expect(
            times[-1] >= denoiser.schedule.t_min - 1e-9,
            f"the last call is at {times[-1]}, below t_min = {denoiser.schedule.t_min}",
        )


def a_single_clean_action_is_exact(config: Any, order: int) -> None:
    """Data of one point: every number of evaluations is exact."""
    for count in (1, 2, 5, 15):
        denoiser = _Gaussian(VariancePreserving(), std=0.0)
        got = config.model_copy(update={"evaluations": count}).integrate(
            denoiser, _noise(), denoiser.schedule
        )
        expect_close(
            got,
            denoiser.flow(_noise()),
            f"{count} evaluations on data of one point",
            rtol=1e-6,
            atol=1e-8,
        )


def gaussian_data_are_reached(config: Any, order: int) -> None:
    """Many evaluations end where the exact flow does."""
    denoiser = _Gaussian(VariancePreserving())
    got = _with(config, 401).integrate(denoiser, _noise(), denoiser.schedule)
    expect_close(
        got, denoiser.flow(_noise()), "401 evaluations on Gaussian data", rtol=0, atol=1e-2
    )


def order_is_as_declared(config: Any, order: int) -> None:
    """Minus the slope of log(largest error) against log(evaluations), 65 to 257 of them down to
    t = 0.1.
    """
    denoiser = _Gaussian(VariancePreserving(t_min=0.1))
    exact = denoiser.flow(_noise())
    errors = []
    for count in COUNTS:
        got = _with(config, count).integrate(denoiser, _noise(), denoiser.schedule)
        errors.append(float((got - exact).abs().max()))
    measured = order_of(COUNTS, errors)
    expect(
        abs(measured - order) < 0.2,
        f"declared order {order}, measured {measured:.2f} from errors {errors} with {COUNTS} "
        "evaluations",
    )


def rows_are_independent(config: Any, order: int) -> None:
    """Any batch shape, and float32 in gives float32 out."""
    denoiser = _Gaussian(VariancePreserving())
    together = config.integrate(denoiser, _noise().reshape(7, 3, 1), denoiser.schedule)
    alone = config.integrate(denoiser, _noise()[7], denoiser.schedule)
    expect_close(together[2, 1], alone, "one row alone", rtol=1e-9, atol=1e-12)
    single = config.integrate(denoiser, _noise(torch.float32), denoiser.schedule)
    expect(single.dtype == torch.float32, f"float32 noise gives {single.dtype}")
    expect_close(single.double(), together.reshape(21, 1), "float32", rtol=0, atol=5e-3)


SolverCheck = Callable[[Any, int], None]
SOLVER_CHECKS: tuple[SolverCheck, ...] = (
    survives_json,
    evaluations_are_counted,
    a_single_clean_action_is_exact,
    gaussian_data_are_reached,
    order_is_as_declared,
    rows_are_independent,
)


def check_solver(
    config: Any,
    *,
    order: int,
    checks: Sequence[SolverCheck] = SOLVER_CHECKS,
) -> None:
    """All of `SOLVER_CHECKS`, or those named, for one solver of the declared order: a Config with
    `evaluations` and `integrate(denoiser, x, schedule)`.

    Raises AssertionError that says what failed.
    """
    run_checks(checks, name_of(config), config, order)
