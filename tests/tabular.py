"""The finite problems and exact answers of `ddice.testing`, by the names that the tests use."""

from __future__ import annotations

from ddice.testing.exact import (
    KINDS,
    Solution,
    bisect,
    conjugate,
    deviations,
    divergence,
    dual,
    implicit,
    ratio,
    semi_gradient,
    state_value,
)
from ddice.testing.fixed_points import RAW, TABLE, error, quick, stacked, train
from ddice.testing.tabular import Array, Problem, random_problem
from ddice.testing.tabular import tabular_bandit as bandit

__all__ = [
    "KINDS",
    "RAW",
    "TABLE",
    "Array",
    "Problem",
    "Solution",
    "bandit",
    "bisect",
    "conjugate",
    "deviations",
    "divergence",
    "dual",
    "error",
    "implicit",
    "quick",
    "random_problem",
    "ratio",
    "semi_gradient",
    "stacked",
    "state_value",
    "train",
]
