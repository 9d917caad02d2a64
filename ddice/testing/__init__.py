"""Checks for parts of your own: what every divergence, solver, sampler, backend and extractor of the toolkit satisfies itself."""

from ddice.testing.backends import BACKEND_CHECKS, check_backend
from ddice.testing.divergences import DIVERGENCE_CHECKS, check_divergence
from ddice.testing.extractors import EXTRACTOR_CHECKS, check_extractor
from ddice.testing.samplers import SAMPLER_CHECKS, check_sampler
from ddice.testing.solvers import SOLVER_CHECKS, check_solver

__all__ = [
    "BACKEND_CHECKS",
    "DIVERGENCE_CHECKS",
    "EXTRACTOR_CHECKS",
    "SAMPLER_CHECKS",
    "SOLVER_CHECKS",
    "check_backend",
    "check_divergence",
    "check_extractor",
    "check_sampler",
    "check_solver",
]
