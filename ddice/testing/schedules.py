"""Conformance of noise schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddice.diffusion.networks import TIME_FEATURES
from ddice.testing.expect import expect, expect_close, name_of, run_checks, survives_json

POINTS = 101


def _times(config: Any) -> Tensor:
    """Times from t_min to 1, (POINTS,), float64."""
    return torch.linspace(config.t_min, 1, POINTS, dtype=torch.float64, device="cpu")


def signal_falls_and_noise_stays(config: Any) -> None:
    """0 < t_min < 1; alpha > 0, sigma > 0, and log_snr = log(alpha / sigma) falls with t."""
    expect(0 < config.t_min < 1, f"expected t_min between 0 and 1, got {config.t_min}")
    t = _times(config)
    alpha = config.alpha(t)
    sigma = config.sigma(t)
    log_snr = config.log_snr(t)
    expect(bool((alpha > 0).all()), f"alpha must be positive, got {float(alpha.min()):.4g}")
    expect(bool((sigma > 0).all()), f"sigma must be positive, got {float(sigma.min()):.4g}")
    expect_close(log_snr, torch.log(alpha / sigma), "log_snr against log(alpha / sigma)")
    rise = log_snr.diff()
    worst = int(rise.argmax())
    expect(float(rise[worst]) < 0, f"log_snr must fall with t, rises at t = {float(t[worst]):.4g}")


def time_is_the_inverse_of_log_snr(config: Any) -> None:
    """time(log_snr(t)) = t, in double precision."""
    t = _times(config)
    expect_close(config.time(config.log_snr(t)), t, "time(log_snr(t))", rtol=1e-8, atol=1e-10)


def it_ends_in_noise(config: Any) -> None:
    """At t = 1 little is left of the action: samplers start from pure noise."""
    end = torch.ones((), dtype=torch.float64, device="cpu")
    left = float(config.alpha(end) / config.sigma(end))
    expect(left < 0.1, f"alpha / sigma = {left:.4g} at t = 1: samples cannot start from noise")


def noised_actions_are_as_stated(config: Any) -> None:
    """noise(actions, t, noise) = alpha(t) actions + sigma(t) noise, with t over the last axis."""
    source = torch.Generator("cpu").manual_seed(0)
    actions = torch.randn(5, 3, generator=source, dtype=torch.float32, device="cpu")
    noise = torch.randn(5, 3, generator=source, dtype=torch.float32, device="cpu")
    t = torch.linspace(config.t_min, 1, 5, dtype=torch.float32, device="cpu")
    wanted = config.alpha(t)[:, None] * actions + config.sigma(t)[:, None] * noise
    expect_close(config.noise(actions, t, noise), wanted, "alpha actions + sigma noise")


def training_times_fill_the_interval(config: Any) -> None:
    """Uniform numbers 0 and 1 become t_min and 1, in order; any power keeps the ends."""
    uniform = torch.linspace(0, 1, POINTS, dtype=torch.float32, device="cpu")
    for power in (1.0, 2.0):
        t = config.training_times(uniform, power)
        ends = torch.tensor([config.t_min, 1.0], dtype=torch.float32, device="cpu")
        expect_close(t[[0, -1]], ends, f"the ends of the training times, power {power:g}")
        expect(bool((t.diff() >= 0).all()), f"training times must grow, power {power:g}")


def features_describe_the_noise(config: Any) -> None:
    """features(t) (..., 4) are finite in single precision, and differ from time to time."""
    t = torch.linspace(config.t_min, 1, POINTS, dtype=torch.float32, device="cpu")
    features = config.features(t)
    shape = (POINTS, TIME_FEATURES)
    expect(features.shape == shape, f"expected features {shape}, got {tuple(features.shape)}")
    expect(features.dtype == torch.float32, f"expected float32, got {features.dtype}")
    expect(bool(features.isfinite().all()), "features must be finite")
    distinct = len(features.unique(dim=0))
    expect(distinct == POINTS, f"{POINTS} times have {distinct} different features")


ScheduleCheck = Callable[[Any], None]
SCHEDULE_CHECKS: tuple[ScheduleCheck, ...] = (
    survives_json,
    signal_falls_and_noise_stays,
    time_is_the_inverse_of_log_snr,
    it_ends_in_noise,
    noised_actions_are_as_stated,
    training_times_fill_the_interval,
    features_describe_the_noise,
)


def check_schedule(
    config: Any,
    *,
    checks: Sequence[ScheduleCheck] = SCHEDULE_CHECKS,
) -> None:
    """All of `SCHEDULE_CHECKS`, or those named, for one noise schedule. Raises AssertionError that
    says what failed.
    """
    run_checks(checks, name_of(config), config)
