"""For anybody who writes a part: conformance suites, problems whose answers are known, closed
forms, orders of convergence.
"""

from ddice.testing.backends import BACKEND_CHECKS, check_backend
from ddice.testing.bandit import ContinuousBandit
from ddice.testing.distance import TwoSample, energy_distance, two_sample
from ddice.testing.divergences import DIVERGENCE_CHECKS, check_divergence
from ddice.testing.episodic import lambda_fixed_point
from ddice.testing.exact import (
    Solution,
    dual,
    expectile,
    implicit,
    occupancy,
    orthogonal_dual,
    policy_of,
    policy_q,
    policy_value,
    semi_gradient,
    state_action_ratio,
)
from ddice.testing.extractors import EXTRACTOR_CHECKS, check_extractor
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
from ddice.testing.gaussian import (
    ExponentialRatio,
    GaussianMixture,
    exact_flow,
    quantiles,
    threshold_guidance,
)
from ddice.testing.networks import ENCODER_CHECKS, SCORE_CHECKS, check_encoder, check_score
from ddice.testing.objectives import contrastive_loss, regression_loss
from ddice.testing.order import measured_order, solver_error
from ddice.testing.samplers import SAMPLER_CHECKS, check_sampler
from ddice.testing.schedules import SCHEDULE_CHECKS, check_schedule
from ddice.testing.solvers import SOLVER_CHECKS, check_solver
from ddice.testing.tabular import Problem, grid_world, random_problem, tabular_bandit

__all__ = [
    "BACKEND_CHECKS",
    "DIVERGENCE_CHECKS",
    "ENCODER_CHECKS",
    "EXTRACTOR_CHECKS",
    "RAW",
    "SAMPLER_CHECKS",
    "SCHEDULE_CHECKS",
    "SCORE_CHECKS",
    "SOLVER_CHECKS",
    "TABLE",
    "ContinuousBandit",
    "Difference",
    "ExponentialRatio",
    "GaussianMixture",
    "Problem",
    "Solution",
    "TwoSample",
    "check_backend",
    "check_divergence",
    "check_encoder",
    "check_extractor",
    "check_sampler",
    "check_schedule",
    "check_score",
    "check_solver",
    "contrastive_loss",
    "difference_table",
    "differences",
    "dual",
    "energy_distance",
    "error",
    "exact_actions",
    "exact_flow",
    "expectile",
    "grid_world",
    "implicit",
    "lambda_fixed_point",
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
