"""Oracles and checks for anybody who writes a part: exact answers to compare with, from closed forms."""

from ddice.testing.distance import TwoSample, energy_distance, two_sample
from ddice.testing.gaussian import ExponentialRatio, GaussianMixture, exact_flow, quantiles, threshold_guidance
from ddice.testing.objectives import contrastive_loss, regression_loss
from ddice.testing.order import measured_order, solver_error

__all__ = [
    "ExponentialRatio",
    "GaussianMixture",
    "TwoSample",
    "contrastive_loss",
    "energy_distance",
    "exact_flow",
    "measured_order",
    "quantiles",
    "regression_loss",
    "solver_error",
    "threshold_guidance",
    "two_sample",
]
