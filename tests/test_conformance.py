"""The parts of the toolkit pass its own conformance suites, which `ddice.testing` gives to
everybody; and the suites notice broken parts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import pytest
import small
import torch
from pydantic import BaseModel, TypeAdapter
from torch import Tensor

from ddice.dice_backends import AnyBackend
from ddice.dice_backends.divergences import (
    BUILT_IN,
    KL,
    Alpha,
    FDivergence,
    NumericDivergence,
    Pearson,
    Piecewise,
)
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import MLP, ResidualScore
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import AnySampler, Diffusion, Gaussian
from ddice.diffusion.solvers import DDIM, MultiStep, SingleStep, Solver
from ddice.extractors import AnyExtractor
from ddice.testing import (
    BACKEND_CHECKS,
    EXTRACTOR_CHECKS,
    SAMPLER_CHECKS,
    SOLVER_CHECKS,
    check_backend,
    check_divergence,
    check_extractor,
    check_sampler,
    check_solver,
)
from ddice.testing.example import example_data
from ddice.testing.expect import run_checks

PRIOR = DiffusionPrior(network=ResidualScore(width=8, blocks=1))
NETWORK = MLP(hidden=(8,), activation="silu")
SAMPLERS = {
    "diffusion": Diffusion(prior=PRIOR, solver=DDIM(evaluations=3)),
    "guided": Diffusion(
        prior=PRIOR,
        guidance=Guidance(network=NETWORK),
        guidance_scale=2.0,
        solver=SingleStep(evaluations=3),
    ),
    "gaussian": Gaussian(network=MLP(hidden=(8,))),
}
SOLVERS = {"ddim": (DDIM(), 1), "single_step": (SingleStep(), 2), "multi_step": (MultiStep(), 2)}


def kinds(union: Any) -> set[str]:
    return {
        str(member.model_fields["kind"].default)
        for member in get_args(get_args(union)[0])
        if issubclass(member, BaseModel)
    }


def backend(kind: str) -> Any:
    return TypeAdapter(AnyBackend).validate_python({"kind": kind, **small.BACKENDS[kind]})


def extractor(kind: str) -> Any:
    return TypeAdapter(AnyExtractor).validate_python({"kind": kind, **small.EXTRACTORS[kind]})


def test_every_built_in_part_is_checked() -> None:
    assert set(small.BACKENDS) == kinds(AnyBackend)
    assert set(small.EXTRACTORS) == kinds(AnyExtractor)
    assert {config.kind for config in SAMPLERS.values()} == kinds(AnySampler)
    assert set(SOLVERS) == kinds(Solver)


@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", small.BACKENDS)
def test_backends(kind: str, check: Any) -> None:
    run_checks([check], backend(kind), example_data())


@pytest.mark.parametrize("check", EXTRACTOR_CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", small.EXTRACTORS)
def test_extractors(kind: str, check: Any) -> None:
    run_checks([check], extractor(kind), example_data())


@pytest.mark.parametrize("check", SAMPLER_CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name: str, check: Any) -> None:
    run_checks([check], SAMPLERS[name], example_data().spec)


@pytest.mark.oracle
@pytest.mark.parametrize("check", SOLVER_CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name: str, check: Any) -> None:
    config, order = SOLVERS[name]
    run_checks([check], config, order)


@pytest.mark.oracle
@pytest.mark.parametrize("cls", BUILT_IN, ids=lambda c: c.__name__)
def test_divergences(cls: type[FDivergence]) -> None:
    check_divergence(cls())


@pytest.mark.oracle
@pytest.mark.parametrize(
    "divergence",
    [
        Alpha(order=3),
        Alpha(order=0.9),
        Alpha(order=-2),
        NumericDivergence(function=Pearson().f),
        NumericDivergence(function=Piecewise().f),
    ],
    ids=["alpha=3", "alpha=0.9", "alpha=-2", "numeric pearson", "numeric piecewise"],
)
def test_more_divergences(divergence: FDivergence) -> None:
    check_divergence(divergence)


# The suites notice what is broken.


class NotNormalised(KL):
    """x log x, as it is often written."""

    def f(self, ratio: Tensor) -> Tensor:
        return torch.xlogy(ratio, ratio)


class NotRestricted(Pearson):
    """The ratio y/2 + 1 without its zero: negative, and its logarithm NaN."""

    def ratio(self, y: Tensor) -> Tensor:
        return y / 2 + 1

    def log_ratio(self, y: Tensor) -> Tensor:
        return torch.log(y / 2 + 1)


class HalfTheConjugate(Piecewise):
    """A factor that belongs into the temperature."""

    def conjugate(self, y: Tensor) -> Tensor:
        return super().conjugate(y) / 2


class TwoSlopes(Piecewise):
    """clamp in place of relu: both branches pass their gradient at y = 0."""

    def _conjugate(self, y: Tensor) -> Tensor:
        above = torch.clamp(y, min=0)
        return torch.expm1(torch.clamp(y, max=0)) + above + above * above / 4


class Exploding(KL):
    """Without a cut."""

    def cut(self, dtype: torch.dtype) -> float:
        return math.inf


class SwappedBranches(Piecewise):
    """The linear ratio below, the exponential above."""

    def conjugate(self, y: Tensor) -> Tensor:
        return torch.where(y < 0, Pearson().conjugate(y), KL().conjugate(y))

    def log_ratio(self, y: Tensor) -> Tensor:
        return torch.where(y < 0, Pearson().log_ratio(y), KL().log_ratio(y))


class WrongPrecision(Pearson):
    """A float64 constant spreads."""

    def _conjugate(self, y: Tensor) -> Tensor:
        return super()._conjugate(y) * torch.ones(1, dtype=torch.float64)


BROKEN_DIVERGENCES = {
    NotNormalised: r"f_is_normalised .*: f'\(1\): expected 0, got 1",
    NotRestricted: "log_ratio_is_the_logarithm .*: log_ratio is NaN at y = ",
    HalfTheConjugate: "ratio_is_the_slope_of_the_conjugate .*the slope of the conjugate",
    TwoSlopes: "ratio_is_the_slope_of_the_conjugate .* worst at y = 0",
    Exploding: "log_ratio_is_the_logarithm|everything_is_finite_up_to_a_million",
    SwappedBranches: "fenchel_equality_holds_at_the_ratio",
    WrongPrecision: r"conjugate of torch\.float32 is torch\.float64",
}


@pytest.mark.parametrize("broken", BROKEN_DIVERGENCES, ids=lambda c: c.__name__)
def test_a_broken_divergence_is_noticed(broken: type[FDivergence]) -> None:
    with pytest.raises(AssertionError, match=BROKEN_DIVERGENCES[broken]):
        check_divergence(broken())


class FirstOrder(SingleStep):
    """DDIM under another name."""

    def integrate(self, denoiser: Any, x: Tensor, schedule: Any) -> Tensor:
        return DDIM(evaluations=self.evaluations, spacing=self.spacing).integrate(
            denoiser, x, schedule
        )


class Wasteful(DDIM):
    """One evaluation more than it says."""

    def integrate(self, denoiser: Any, x: Tensor, schedule: Any) -> Tensor:
        denoiser(x, torch.ones((), dtype=x.dtype))
        return super().integrate(denoiser, x, schedule)


def test_a_broken_solver_is_noticed() -> None:
    with pytest.raises(
        AssertionError,
        match=r"single_step fails order_is_as_declared .*: declared order 2, measured 1\.0",
    ):
        check_solver(FirstOrder(), order=2)
    with pytest.raises(
        AssertionError, match=r"evaluations_are_counted .*: 1 evaluations call the denoiser 2 times"
    ):
        check_solver(Wasteful(), order=1)


def patched(config: Any, **methods: Any) -> Any:
    """A configuration of a subclass whose parts have these methods in place of their own."""
    part = type(config).build

    def build(self: Any, *arguments: Any, **named: Any) -> Any:
        built = part(self, *arguments, **named)
        built.__class__ = type(type(built).__name__, (type(built),), methods)
        return built

    return type(
        type(config).__name__,
        (type(config),),
        {"build": build, "__module__": __name__, "__annotations__": {}},
    )(**dict(config))


def noisy_update(self: Any, batch: Any, **named: Any) -> Any:
    torch.rand(())
    return super(type(self), self).update(batch, **named)


def waiting_update(self: Any, batch: Any, **named: Any) -> Any:
    return {
        name: torch.tensor(value.mean().item())
        for name, value in super(type(self), self).update(batch, **named).items()
    }


def lost_optimiser(self: Any) -> Any:
    return {
        name: value
        for name, value in super(type(self), self).state().items()
        if not name.startswith("optimizer.")
    }


def careless_log_ratio(self: Any, batch: Any) -> Tensor:
    return super(type(self), self).log_ratio(batch) * (batch.rewards * 0 + math.nan)


def centred_log_ratio(self: Any, batch: Any) -> Tensor:
    found = super(type(self), self).log_ratio(batch)
    return found - found.mean(-1, keepdim=True)


BROKEN_BACKENDS = [
    (
        {"update": noisy_update},
        "training_is_a_function_of_seed_and_step .*draws from the global generator",
    ),
    ({"update": waiting_update}, "metrics_are_detached_scalars .*waits for the device"),
    ({"state": lost_optimiser}, "a_state_goes_on_as_if_never_interrupted .*differ"),
    ({"log_ratio": careless_log_ratio}, "log_ratio_is_a_logarithm .*NaN in rows"),
    ({"log_ratio": centred_log_ratio}, "log_ratio_is_a_logarithm .*log_ratio of some rows alone"),
    (
        {"bootstrap": lambda self, batch, values: self.rewards(batch.rewards) + 0.99 * values},
        "terminations_end_the_bootstrap .*garbage",
    ),
    (
        {"ratio_kind": "both"},
        'has_what_a_backend_has .*ratio_kind is "action" or "state-action", got \'both\'',
    ),
]


@pytest.mark.parametrize(
    ("methods", "message"),
    BROKEN_BACKENDS,
    ids=[message.split(" ")[0] for _, message in BROKEN_BACKENDS],
)
def test_a_broken_backend_is_noticed(methods: dict[str, Any], message: str) -> None:
    checks = [check for check in BACKEND_CHECKS if message.startswith(check.__name__)]
    with pytest.raises(AssertionError, match=f"piecewise_f fails {message}"):
        run_checks(checks, patched(backend("piecewise_f"), **methods), example_data())


def asking_update(self: Any, batch: Any, **named: Any) -> Any:
    self.prior.averaged(
        self.prior.encoder(batch.observations),
        batch.actions,
        self.prior.config.schedule.features(torch.ones(len(batch.rows))),
    )
    return super(type(self), self).update(batch, **named)


def unweighted_update(self: Any, batch: Any, **named: Any) -> Any:
    return super(type(self), self).update(
        dataclasses.replace(batch, weights=torch.ones_like(batch.weights)), **named
    )


BROKEN_EXTRACTORS = [
    (
        {"update": asking_update},
        "no_generated_action_in_training .*score network of the prior is evaluated",
    ),
    ({"update": unweighted_update}, "losses_are_weighted_means .*rows of weight 0"),
]


@pytest.mark.parametrize(
    ("methods", "message"),
    BROKEN_EXTRACTORS,
    ids=[message.split(" ")[0] for _, message in BROKEN_EXTRACTORS],
)
def test_a_broken_extractor_is_noticed(methods: dict[str, Any], message: str) -> None:
    checks = [check for check in EXTRACTOR_CHECKS if message.startswith(check.__name__)]
    with pytest.raises(AssertionError, match=f"guide_then_select fails {message}"):
        run_checks(checks, patched(extractor("guide_then_select"), **methods), example_data())


def test_whole_suites_in_one_call() -> None:
    check_backend(backend("given"))
    check_extractor(extractor("gaussian_bc"))
    check_sampler(SAMPLERS["gaussian"])
    check_solver(DDIM(), order=1)
    with pytest.raises(AssertionError, match=r"given fails log_ratio_is_a_logarithm .*NaN in rows"):
        check_backend(patched(backend("given"), log_ratio=careless_log_ratio))


def test_a_broken_sampler_is_noticed() -> None:
    class Mixing(Gaussian):
        """Rows that look at one another."""

        def build(self, spec: Any, seed: Any = 0) -> Any:
            sampler = super().build(spec, seed)
            inner = sampler.forward
            sampler.forward = lambda observations, noise: inner(
                observations - observations.mean(0), noise
            )
            return sampler

    with pytest.raises(
        AssertionError,
        match=r"gaussian fails rows_and_candidates_are_independent .*: two rows alone",
    ):
        check_sampler(Mixing(network=MLP(hidden=(8,))))
