"""The order of every solver on a guided mixture, and the named settings against each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from oracles import GaussianData

from ddice.diffusion.samplers import Diffusion
from ddice.diffusion.schedule import VariancePreserving
from ddice.diffusion.solvers import DDIM, FEW_STEPS, PUBLISHED, MultiStep, SingleStep
from ddice.extractors import GuideThenSelect, SelectOnly, WeightedBC
from ddice.testing import (
    ExponentialRatio,
    GaussianMixture,
    exact_flow,
    measured_order,
    solver_error,
)
from ddice.testing.order import noise_grid

pytestmark = pytest.mark.oracle

ORDERS = {DDIM: 1, SingleStep: 2, MultiStep: 2}
ERRORS = Path(__file__).parent.parent / "benchmarks" / "solver_error.json"


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "log_snr"])
@pytest.mark.parametrize("solver", ORDERS, ids=lambda s: s.__name__)
def test_the_measured_order_is_the_declared_one(solver, spacing: str) -> None:
    """Measured: 0.99 to 1.01 for DDIM, 1.88 to 2.04 for the others, at scales 1 and 2."""
    for scale in (1.0, 2.0):
        assert measured_order(solver, spacing, scale=scale) == pytest.approx(
            ORDERS[solver], abs=0.15
        )


def test_the_exact_flow_is_exact() -> None:
    """On Gaussian data the flow is affine and known; a linear ratio shifts its mean."""
    schedule, x = VariancePreserving(), noise_grid(21)
    prior = GaussianMixture.of([1], [[0.3]], [[0.4]])
    torch.testing.assert_close(
        exact_flow(prior.denoiser(schedule), x, schedule),
        GaussianData(0.3, 0.4).flow(x, 1.0, 1e-3),
        rtol=1e-8,
        atol=1e-8,
    )
    tilted = prior.tilted(ExponentialRatio.linear([1.5]))
    torch.testing.assert_close(tilted.mean, torch.tensor([0.3 + 1.5 * 0.16], dtype=torch.float64))
    middle = exact_flow(tilted.denoiser(schedule), x, schedule, end=0.4)
    torch.testing.assert_close(
        middle, GaussianData(0.3 + 1.5 * 0.16, 0.4).flow(x, 1.0, 0.4), rtol=1e-8, atol=1e-8
    )


def test_few_steps_are_nearer_to_the_flow_than_the_published_setting() -> None:
    """The numbers of its docstring, at every scale of the benchmark."""
    expected = {0.0: (0.039, 0.052), 1.0: (0.034, 0.066), 2.0: (0.034, 0.065), 4.0: (0.064, 0.094)}
    for scale, numbers in expected.items():
        errors = [
            solver_error(solver, scale, VariancePreserving())[0]
            for solver in (FEW_STEPS, PUBLISHED)
        ]
        assert errors == pytest.approx(numbers, rel=0.02)


def test_the_committed_table_is_that_of_the_code() -> None:
    rows = {
        (r["solver"], r["spacing"], r["scale"], r["evaluations"]): r
        for r in json.loads(ERRORS.read_text())
    }
    for solver, name in (
        (DDIM, "DDIM"),
        (SingleStep, "DPM-Solver++(2S)"),
        (MultiStep, "DPM-Solver++(2M)"),
    ):
        for spacing in ("uniform", "quadratic", "log_snr"):
            rms, largest = solver_error(
                solver(evaluations=15, spacing=spacing), 1.0, VariancePreserving()
            )
            row = rows[name, spacing, 1.0, 15]
            assert (row["rms"], row["max"]) == pytest.approx((rms, largest), rel=0.01)


def test_few_steps_are_nobodys_default() -> None:
    for config in (GuideThenSelect, SelectOnly, WeightedBC, Diffusion):
        assert config.model_fields["solver"].default == PUBLISHED != FEW_STEPS
