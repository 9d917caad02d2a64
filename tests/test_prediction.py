"""What priors predict, and that noise follows from it."""

from __future__ import annotations

import pytest
import torch

from ddice.diffusion.prediction import NoisePrediction, Prediction, VelocityPrediction
from ddice.diffusion.schedule import VariancePreserving


def test_a_velocity_by_hand() -> None:
    """alpha = 0.6, sigma = 0.8: v = 0.6 * 2 - 0.8 * 0.5 = 0.8 at x = 0.6 * 0.5 + 0.8 * 2 = 1.9,
    and back, noise = 0.6 * 0.8 + 0.8 * 1.9 = 2.
    """
    action, noise, alpha, sigma = (torch.tensor([value]) for value in (0.5, 2.0, 0.6, 0.8))
    kind = VelocityPrediction()
    velocity = kind.target(action, noise, alpha, sigma)
    torch.testing.assert_close(velocity, torch.tensor([0.8]))
    torch.testing.assert_close(kind.noise(velocity, torch.tensor([1.9]), alpha, sigma), noise)


@pytest.mark.parametrize("kind", [NoisePrediction(), VelocityPrediction()], ids=lambda k: k.kind)
def test_the_noise_comes_back_from_its_target(kind: Prediction) -> None:
    """At every time, and the error of a clean action is no larger than that of a velocity."""
    source = torch.Generator().manual_seed(0)
    schedule = VariancePreserving()
    actions, noise, error = torch.randn(3, 50, 2, generator=source, dtype=torch.float64)
    t = torch.linspace(1e-3, 1, 50, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    x = schedule.noise(actions, t, noise)
    target = kind.target(actions, noise, alpha, sigma)
    torch.testing.assert_close(kind.noise(target, x, alpha, sigma), noise)
    clean = (x - sigma * kind.noise(target + error, x, alpha, sigma)) / alpha
    factor = sigma if kind.kind == "velocity" else sigma / alpha
    torch.testing.assert_close(clean - actions, -factor * error)
