"""Checks and exact answers for anybody who writes a part: conformance suites, problems whose answers are known, closed forms, orders of convergence."""

from ddice.testing.bandit import ContinuousBandit
from ddice.testing.distance import TwoSample, energy_distance, two_sample
from ddice.testing.exact import (
    Solution,
    dual,
    occupancy,
    orthogonal_dual,
    policy_of,
    policy_q,
    policy_value,
    semi_gradient,
    state_action_ratio,
)
from ddice.testing.fixed_points import (
    RAW,
    TABLE,
    Difference,
    difference_table,
    differences,
    error,
    exact_actions,
    quick,
    relative_error,
    stacked,
    table_settings,
    train,
    train_orthogonal_limit,
)
from ddice.testing.gaussian import ExponentialRatio, GaussianMixture, exact_flow, quantiles, threshold_guidance
from ddice.testing.objectives import contrastive_loss, regression_loss
from ddice.testing.order import measured_order, solver_error
from ddice.testing.tabular import Problem, grid_world, random_problem, tabular_bandit

__all__ = [
    "RAW",
    "TABLE",
    "ContinuousBandit",
    "Difference",
    "ExponentialRatio",
    "GaussianMixture",
    "Problem",
    "Solution",
    "TwoSample",
    "contrastive_loss",
    "difference_table",
    "differences",
    "dual",
    "energy_distance",
    "error",
    "exact_actions",
    "exact_flow",
    "grid_world",
    "measured_order",
    "occupancy",
    "orthogonal_dual",
    "policy_of",
    "policy_q",
    "policy_value",
    "quantiles",
    "quick",
    "random_problem",
    "regression_loss",
    "relative_error",
    "semi_gradient",
    "solver_error",
    "stacked",
    "state_action_ratio",
    "table_settings",
    "tabular_bandit",
    "threshold_guidance",
    "train",
    "train_orthogonal_limit",
    "two_sample",
]
