"""Problems whose answers are known, for tests of backends, extractors and evaluations: the toolkit's own and yours."""

from ddice.testing.bandit import ContinuousBandit
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
    quick,
    relative_error,
    stacked,
    table_settings,
    train,
    train_orthogonal_limit,
)
from ddice.testing.tabular import Problem, grid_world, random_problem, tabular_bandit

__all__ = [
    "RAW",
    "TABLE",
    "ContinuousBandit",
    "Difference",
    "Problem",
    "Solution",
    "difference_table",
    "differences",
    "dual",
    "error",
    "grid_world",
    "occupancy",
    "orthogonal_dual",
    "policy_of",
    "policy_q",
    "policy_value",
    "quick",
    "random_problem",
    "relative_error",
    "semi_gradient",
    "stacked",
    "state_action_ratio",
    "table_settings",
    "tabular_bandit",
    "train",
    "train_orthogonal_limit",
]
