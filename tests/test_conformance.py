"""The parts of the toolkit pass its own conformance suites, which `ddice.testing` gives to
everybody; and the suites notice broken parts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from opened import opened
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
from ddice.diffusion.networks import MLP, ResidualScore, Score
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import AnySampler, Diffusion, Gaussian
from ddice.diffusion.schedule import NoiseSchedule, VariancePreserving
from ddice.diffusion.solvers import DDIM, AnySolver, SingleStep
from ddice.extractors import AnyExtractor
from ddice.testing import (
    BACKEND_CHECKS,
    ENCODER_CHECKS,
    EXTRACTOR_CHECKS,
    SAMPLER_CHECKS,
    SCHEDULE_CHECKS,
    SCORE_CHECKS,
    SOLVER_CHECKS,
    check_backend,
    check_divergence,
    check_encoder,
    check_extractor,
    check_sampler,
    check_schedule,
    check_score,
    check_solver,
)
from ddice.testing.catalogue import (
    BACKENDS,
    ENCODERS,
    EXTRACTORS,
    SAMPLERS,
    SCHEDULES,
    SCORES,
    SOLVERS,
    BackendExample,
    Example,
    SolverExample,
    require_examples,
)

PRIOR = DiffusionPrior(network=ResidualScore(width=8, blocks=1))
NETWORK = MLP(hidden=(8,), activation="silu")
GUIDED = Diffusion(
    prior=PRIOR,
    guidance=Guidance(network=NETWORK),
    guidance_scale=2.0,
    solver=SingleStep(evaluations=3),
)
UNIONS = {
    "BACKENDS": (AnyBackend, BACKENDS),
    "EXTRACTORS": (AnyExtractor, EXTRACTORS),
    "SAMPLERS": (AnySampler, SAMPLERS),
    "SOLVERS": (AnySolver, SOLVERS),
    "SCORES": (Score, SCORES),
}


def of(examples: tuple[Example, ...], kind: str) -> Any:
    """The small configuration of a kind."""
    (config,) = (example.config for example in examples if example.kind == kind)
    return config


def each(examples: tuple[Example, ...]) -> Any:
    return pytest.mark.parametrize("example", examples, ids=lambda example: example.kind)


def checks(suite: tuple[Any, ...]) -> Any:
    return pytest.mark.parametrize("check", suite, ids=lambda check: check.__name__)


@pytest.mark.parametrize("table", UNIONS)
def test_every_built_in_part_has_an_example(table: str) -> None:
    require_examples(*UNIONS[table], table)


def test_a_part_without_an_example_is_named() -> None:
    message = r"got none of OptiDice: add Example\(OptiDice, .*\) to BACKENDS in ddice/testing/"
    others = [example for example in BACKENDS if example.kind != "optidice"]
    with pytest.raises(AssertionError, match=message):
        require_examples(AnyBackend, others, "BACKENDS")


@checks(BACKEND_CHECKS)
@each(BACKENDS)
def test_backends(example: BackendExample, check: Any) -> None:
    check_backend(example.config, checks=[check])


@checks(EXTRACTOR_CHECKS)
@each(EXTRACTORS)
def test_extractors(example: Example, check: Any) -> None:
    check_extractor(example.config, checks=[check])


@checks(SAMPLER_CHECKS)
@each(SAMPLERS)
def test_samplers(example: Example, check: Any) -> None:
    check_sampler(example.config, checks=[check])


@checks(SAMPLER_CHECKS)
def test_a_guided_sampler(check: Any) -> None:
    check_sampler(GUIDED, checks=[check])


@checks(SCHEDULE_CHECKS)
@each(SCHEDULES)
def test_schedules(example: Example, check: Any) -> None:
    check_schedule(example.config, checks=[check])


@checks(SCORE_CHECKS)
@each(SCORES)
def test_scores(example: Example, check: Any) -> None:
    check_score(example.config, checks=[check])


@checks(ENCODER_CHECKS)
@each(ENCODERS)
def test_encoders(example: Example, check: Any) -> None:
    check_encoder(example.config, checks=[check])


@pytest.mark.oracle
@checks(SOLVER_CHECKS)
@each(SOLVERS)
def test_solvers(example: SolverExample, check: Any) -> None:
    check_solver(example.config, order=example.order, checks=[check])


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


with opened(KL, Pearson, Piecewise):

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


with opened(DDIM, SingleStep):

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

    with opened(type(config)):
        changed = type(
            type(config).__name__,
            (type(config),),
            {"build": build, "__module__": __name__, "__annotations__": {}},
        )
    return changed(**dict(config))


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
    meant = [check for check in BACKEND_CHECKS if message.startswith(check.__name__)]
    with pytest.raises(AssertionError, match=f"piecewise_f fails {message}"):
        check_backend(patched(of(BACKENDS, "piecewise_f"), **methods), checks=meant)


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
    meant = [check for check in EXTRACTOR_CHECKS if message.startswith(check.__name__)]
    with pytest.raises(AssertionError, match=f"guide_then_select fails {message}"):
        check_extractor(patched(of(EXTRACTORS, "guide_then_select"), **methods), checks=meant)


def test_whole_suites_in_one_call() -> None:
    check_backend(of(BACKENDS, "given"))
    check_extractor(of(EXTRACTORS, "gaussian_bc"))
    check_sampler(of(SAMPLERS, "gaussian"))
    check_solver(DDIM(), order=1)
    with pytest.raises(AssertionError, match=r"given fails log_ratio_is_a_logarithm .*NaN in rows"):
        check_backend(patched(of(BACKENDS, "given"), log_ratio=careless_log_ratio))


def test_a_broken_sampler_is_noticed() -> None:
    with opened(Gaussian):

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


with opened(VariancePreserving):

    class Backwards(VariancePreserving):
        """Its inverse is that of another schedule."""

        def time(self, log_snr: Tensor) -> Tensor:
            return super().time(log_snr) ** 1.1

    class Louder(VariancePreserving):
        """The noise of an action is not what alpha and sigma say."""

        def noise(self, actions: Tensor, t: Tensor, noise: Tensor) -> Tensor:
            return super().noise(actions, t, 2 * noise)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Backwards(), r"time_is_the_inverse_of_log_snr .*: time\(log_snr\(t\)\): expected"),
        (Louder(), "noised_actions_are_as_stated .*: alpha actions . sigma noise: expected"),
        (VariancePreserving(beta_max=2.0), r"it_ends_in_noise .*: alpha / sigma = 0\.7"),
    ],
    ids=["inverse", "noise", "end"],
)
def test_a_broken_schedule_is_noticed(broken: NoiseSchedule, message: str) -> None:
    with pytest.raises(AssertionError, match=f"vp fails {message}"):
        check_schedule(broken)


class _Blind(torch.nn.Module):
    """A network that does not look at the time."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, actions: Tensor, time: Tensor) -> Tensor:
        prediction: Tensor = self.network(features, actions, torch.zeros_like(time))
        return prediction


with opened(ResidualScore):

    class BlindScore(ResidualScore):
        """Builds one."""

        def build(self, *arguments: Any, **named: Any) -> Any:
            return _Blind(super().build(*arguments, **named))


def test_a_broken_score_is_noticed() -> None:
    with pytest.raises(
        AssertionError, match=r"residual fails every_input_counts.*: predictions ignore the time"
    ):
        check_score(BlindScore(width=8, blocks=1))
