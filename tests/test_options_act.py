"""Every field of every configuration acts: another value of it gives another result (a trained
state, a ratio, an action). A field without an entry in `OTHER` fails by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ddice.core.config import Config, tag_of
from ddice.core.plugins import members
from ddice.data import Transitions
from ddice.dice_backends import (
    AdvantageHead,
    AnyBackend,
    CriticEnsemble,
    DeterministicDice,
    FDice,
    GivenRatio,
    Iql,
    LambdaReturns,
    LowerBound,
    OptiDice,
    OrthogonalDice,
    PiecewiseF,
)
from ddice.dice_backends.backup import AnyBackup
from ddice.dice_backends.calibration import Calibration
from ddice.dice_backends.critic import AnySelector
from ddice.dice_backends.divergences import Alpha, Divergence, NumericDivergence
from ddice.dice_backends.optidice import AnyExpectation
from ddice.dice_backends.q_function import QConfig
from ddice.dice_backends.reduction import AnyReduction
from ddice.dice_backends.rewards import AnyReward, Rewards, Scale
from ddice.dice_backends.state_correction import StateCorrection
from ddice.diffusion.guidance import AnyRescaling, Guidance
from ddice.diffusion.networks import (
    MLP,
    TIME_FEATURES,
    AnyEncoder,
    AnyScore,
    AnyTime,
    FlattenEncoder,
    FourierTime,
    Network,
    PublishedScore,
    ResidualScore,
)
from ddice.diffusion.prediction import AnyPrediction, NoisePrediction
from ddice.diffusion.prior import AnyPrior, DiffusionPrior
from ddice.diffusion.samplers import (
    Actor,
    AnySampler,
    AnySelection,
    Diffusion,
    Gaussian,
    Selection,
)
from ddice.diffusion.schedule import AnySchedule, VariancePreserving
from ddice.diffusion.solvers import DDIM, AnySolver
from ddice.extractors import (
    AnyExtractor,
    GaussianBC,
    GuideThenSelect,
    PolicyGradient,
    SelectOnly,
    WeightedBC,
)
from ddice.ope import FittedQEvaluation
from ddice.parts.part import Optimizer
from ddice.testing.example import example_data

NET = MLP(hidden=(8,), activation="silu")
OTHER_NET = MLP(hidden=(8,), activation="relu")
RAW = FlattenEncoder(normalize=False)
SLOW = Optimizer(learning_rate=1e-4)
HEAD = AdvantageHead(network=NET)
SCORE = ResidualScore(width=8, blocks=1)
PRIOR = DiffusionPrior(prediction=NoisePrediction(), network=SCORE, batch_size=16)
GUIDANCE = Guidance(network=NET, batch_size=16, noises_per_action=2)
STEPS = 4


def with_pole(x: Tensor) -> Tensor:
    return -torch.log(x)


def ratio(batch: Any) -> Tensor:
    return 1.0 + (batch.actions[..., 0] > 0).float()


def flat_ratio(batch: Any) -> Tensor:
    return torch.ones_like(batch.rewards)


def critic(observations: Tensor, actions: Tensor) -> Tensor:
    # of two members, each the smaller one for some actions
    return torch.stack([actions.sum(-1), 2 * actions.sum(-1) - 0.2])


# the fields of small examples that differ from the defaults, for quickness or because they are
# required
PAIR: dict[str, Any] = {"value": NET, "critic": NET, "batch_size": 16}
ALONE: dict[str, Any] = {"value": NET, "advantage": HEAD, "batch_size": 16}
QUICK: dict[str, Any] = {"candidates": 3, "solver": DDIM(evaluations=3)}
EXAMPLES: dict[type[Config], dict[str, Any]] = {
    PiecewiseF: {**PAIR, "selector": HEAD},
    FDice: {**PAIR, "divergence": "kl"},
    Iql: {**PAIR, "temperature": 0.05},
    DeterministicDice: ALONE,
    OrthogonalDice: ALONE,
    OptiDice: ALONE,
    GivenRatio: {"source": ratio, "q": critic},
    StateCorrection: {"discount": 0.9, "potential": NET, "factor": NET, "batch_size": 16},
    FittedQEvaluation: {"critic": NET, "samples": 2, "batch_size": 16},
    AdvantageHead: {"network": NET},
    GuideThenSelect: {**QUICK, "guidance": GUIDANCE},
    WeightedBC: {**QUICK, "batch_size": 16},
    GaussianBC: {"candidates": 3, "batch_size": 16, "network": NET},
    PolicyGradient: {"batch_size": 16, "network": NET},
    SelectOnly: QUICK,
    # before a pole: elsewhere max_ratio has nothing to do
    NumericDivergence: {"function": with_pole},
    Alpha: {"order": 0.5},
    Scale: {"factor": 3.0},
    DiffusionPrior: {"network": SCORE, "batch_size": 16},
    Guidance: {"network": NET, "batch_size": 16, "noises_per_action": 2},
    Diffusion: {"prior": PRIOR, "guidance": GUIDANCE, "solver": DDIM(evaluations=3)},
    Gaussian: {"network": NET},
    Actor: {"network": NET},
    ResidualScore: {"width": 8, "blocks": 1},
    PublishedScore: {"widths": (16, 8, 8), "condition": 8, "embedding": 8},
    MLP: {"hidden": (8,)},
}
# field -> another value; by "Class.field" where classes differ
OTHER: dict[str, Any] = {
    "temperature": 0.3,
    "discount": 0.5,
    "rewards": (Scale(factor=3.0),),
    "value": OTHER_NET,
    "encoder": RAW,
    "optimizer": SLOW,
    "batch_size": 17,
    "polyak": 0.5,
    "warm_start_steps": 3,
    "value_weight": 0.5,
    "critic": OTHER_NET,
    "critic_members": 3,
    "reduction": LowerBound(pessimism=2.0),
    "backup": LambdaReturns(refresh_every=2),
    "calibration": Calibration(actions=2),
    "actions": 3,
    "lam": 0.1,
    "refresh_every": 2,
    "pessimism": 2.0,
    "selector": CriticEnsemble(members=3),
    "members": 4,
    "clip_deviations": 0.5,
    "divergence": "soft_chi2",
    "OrthogonalDice.divergence": "pearson",
    "OptiDice.divergence": "half_pearson",
    "advantage": AdvantageHead(network=OTHER_NET),
    "expectile": 0.9,
    "Iql.log_cap": 0.1,
    "trade_off": 0.3,
    "orthogonal_weight": 0.2,
    "expectation": "sample",
    "source": flat_ratio,
    "q": lambda observations, actions: -critic(observations, actions),
    "ratio_kind": "state-action",
    "candidates": 2,
    "selection": Selection(rule="softmax", temperature=1e-3),
    "clip_candidates": "after_scoring",
    "noise_scale": 0.5,
    "guidance_scale": 3.0,
    "guidance": Guidance(network=OTHER_NET, batch_size=16, noises_per_action=2),
    "solver": DDIM(evaluations=2),
    "clip_denoised": False,
    "init": "fresh",
    "bc_weight": 3.0,
    "log_cap": 0.1,
    "network": OTHER_NET,
    "max_ratio": 2.0,
    "order": 0.7,
    "smoothing": 0.5,
    "function": lambda x: 5 * (x - 1) ** 2,
    "factor": 2.0,
    "coefficient": 3.0,
    "schedule": VariancePreserving(beta_max=10.0),
    "prediction": NoisePrediction(),
    "ema": 0.0,
    "DiffusionPrior.network": ResidualScore(width=9, blocks=1),
    "prior": DiffusionPrior(network=ResidualScore(width=9, blocks=1)),
    "time": FourierTime(size=4),
    "noises_per_action": 3,
    "time_power": 2.0,
    "log_floor": -0.1,
    "normalize": False,
    "exponent_cut": 0.1,
    "rescale": "batch_max",
    "evaluations": 6,
    "spacing": "log_snr",
    "MultiStep.order": 1,
    "t_min": 1e-2,
    "beta_min": 0.2,
    "beta_max": 10.0,
    "width": 9,
    "blocks": 2,
    "widths": (16, 8, 9),
    "condition": 9,
    "embedding": 9,
    "size": 4,
    "scale": 3.0,
    "hidden": (8, 8),
    "activation": "silu",
    "layer_norm": True,
    "initialisation": "kaiming",
    "learning_rate": 1e-4,
    "weight_decay": 0.1,
    "decay": "cosine",
    "StateCorrection.divergence": "kl",
    "potential": OTHER_NET,
    "samples": 3,
    "StateCorrection.factor": OTHER_NET,
}
# not the numbers of a small training, but what is reported or refused, is seen by these
REASONS: dict[str, str] = {
    "GivenRatio.ratio_kind": "says what the user's weights mean: it is noted in the policy, and "
    "decides whether ddice.ope and StateCorrection take them (tests/test_given.py)",
}

# not options of anything: what a saved policy says of its critic
ELSEWHERE = {QConfig}


@cache
def data() -> Transitions:
    return example_data()


def example(cls: type[Config]) -> Config:
    return cls(**EXAMPLES.get(cls, {}))


def tensors(*values: Any) -> Tensor:
    return torch.cat([torch.as_tensor(value).detach().double().flatten() for value in values])


def backend(config: Any) -> Tensor:
    """Ratios, Q and metrics after a few steps."""
    part = config.build(data().spec)
    part.prepare(data())
    metrics: dict[str, Tensor] = {}
    for step in range(STEPS):
        size = getattr(part, "batch_size", 16)
        metrics = part.update(data().sample(size, seed=0, step=step), step=step)
    full = data().full()
    q = part.q(full.observations, full.actions)
    settings = getattr(config, "calibration", None)
    if settings is not None:
        part = settings.fit(data(), backend=part, prior=trained_prior(), progress=False)
    return tensors(part.log_ratio(full), q.amin(0), *metrics.values())


@cache
def trained_prior() -> Any:
    return PRIOR.fit(data(), steps=STEPS, progress=False, device="cpu")


def extractor(config: Any) -> Tensor:
    """Actions after a few steps: far from the bounds, and with noise for the candidates."""
    ratios = GivenRatio(source=ratio, q=critic).build(data().spec)
    policy = config.fit(
        data(), prior=trained_prior(), backend=ratios, steps=20, progress=False, device="cpu"
    )
    observations = 3 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(64, policy.config.candidates, 2, generator=torch.Generator().manual_seed(1))
    choice = policy.decide(observations, 3 * noise, torch.linspace(0, 0.99, 64))
    return tensors(choice.actions, choice.candidates, policy.choose(observations, seed=0).actions)


def divergence(config: Any) -> Tensor:
    y = torch.linspace(-3, 3, 61)
    return tensors(config.log_ratio(y).exp(), config.conjugate(y))


def reward(config: Any) -> Tensor:
    return tensors(Rewards((config.at(0.9),), data().spec.rewards)(data().rewards))


def selection(config: Any) -> Tensor:
    q = torch.randn(5, 200, 4, generator=torch.Generator().manual_seed(0))
    return tensors(config.select(q, torch.linspace(0, 0.99, 200)))


def selector(config: Any) -> Tensor:
    return backend(PiecewiseF(**{**PAIR, "selector": config}))


def reduction(config: Any) -> Tensor:
    return backend(PiecewiseF(**PAIR, reduction=config))


def calibration(config: Any) -> Tensor:
    return backend(PiecewiseF(**PAIR, temperature="ess:0.5", calibration=config))


def backup(config: Any) -> Tensor:
    return backend(PiecewiseF(**PAIR, backup=config))


def expectation(config: Any) -> Tensor:
    return backend(OptiDice(**ALONE, expectation=config))


def prior(config: Any) -> Tensor:
    """Predicted noise of the averaged network after a few steps."""
    part = config.fit(data(), steps=STEPS, progress=False, device="cpu")
    observations, actions = data().full().observations, data().full().actions
    denoise = part.denoiser(part.encoder(observations))
    return tensors(denoise(actions, torch.tensor(0.5)))


def optimizer(config: Any) -> Tensor:
    return prior(
        DiffusionPrior(prediction=NoisePrediction(), network=SCORE, batch_size=16, optimizer=config)
    )


def guidance(config: Any) -> Tensor:
    return extractor(GuideThenSelect(**QUICK, guidance=config))


def correction(config: Any) -> Tensor:
    """Ratios after a few steps on given ones."""
    given = GivenRatio(source=ratio).build(data().spec)
    part = config.fit(data(), backend=given, steps=STEPS, progress=False, device="cpu")
    return tensors(part.log_ratio(data().full()))


def toward_zero(observations: Tensor, seed: int) -> Tensor:
    noise = torch.randn(len(observations), 2, generator=torch.Generator().manual_seed(seed))
    return torch.tanh(0.1 * noise - observations[:, :2])


def fitted_q(config: Any) -> Tensor:
    part = config.fit(data(), policy=toward_zero, steps=STEPS, progress=False, device="cpu")
    full = data().full()
    return tensors(part.q(full.observations, full.actions))


def rescaling(config: Any) -> Tensor:
    return guidance(GUIDANCE.model_copy(update={"rescale": config}))


def sampler(config: Any) -> Tensor:
    source = torch.Generator().manual_seed(0)
    observations, noise = (torch.randn(shape, generator=source) for shape in ((8, 3), (8, 4, 2)))
    return tensors(config.build(data().spec)(observations, noise))


def solver(config: Any) -> Tensor:
    """Actions where the noise that is predicted is curved in x and moves with t."""
    noise = torch.linspace(-2, 2, 9)[:, None]
    return tensors(config.integrate(lambda x, t: torch.sin(x + t), noise, VariancePreserving()))


def schedule(config: Any) -> Tensor:
    t = config.training_times(torch.linspace(0, 1, 9, dtype=torch.float64))
    return tensors(t, config.alpha(t), config.time(config.log_snr(t) + 1))


def prediction(config: Any) -> Tensor:
    output, x = torch.linspace(-2, 2, 9), torch.linspace(0, 1, 9)
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8)
    return tensors(config.target(output, x, alpha, sigma), config.noise(output, x, alpha, sigma))


INPUTS = torch.linspace(-2, 2, 8 * 9).sin().reshape(8, 9)
FEATURES, ACTIONS, TIMES = INPUTS.split([3, 2, TIME_FEATURES], dim=-1)


def score(config: Any) -> Tensor:
    network = config.build(3, 2, seed=0, stream="score")
    return tensors(network(FEATURES, ACTIONS, TIMES))


def time(config: Any) -> Tensor:
    network = Network({"time": TIME_FEATURES}, seed=0, stream="time")
    network.linear(config.layers(network, "time"), 2)
    return tensors(network(TIMES))


def encoder(config: Any) -> Tensor:
    return tensors(config.build((0.5, -1.0, 0.0), (2.0, 1.0, 0.5))(FEATURES))


def mlp(config: Any) -> Tensor:
    return tensors(config.build({"features": 3}, 2, seed=0, stream="mlp")(FEATURES))


# what is tried, and what comes of it
UNIONS: tuple[tuple[Any, Any], ...] = (
    (AnyBackend, backend),
    (StateCorrection, correction),
    (FittedQEvaluation, fitted_q),
    (AnySelector, selector),
    (AnyReduction, reduction),
    (Calibration, calibration),
    (AnyBackup, backup),
    (AnyExpectation, expectation),
    (Divergence, divergence),
    (AnyReward, reward),
    (AnyPrior, prior),
    (Optimizer, optimizer),
    (AnySchedule, schedule),
    (AnyPrediction, prediction),
    (AnySolver, solver),
    (Guidance, guidance),
    (AnyRescaling, rescaling),
    (AnySampler, sampler),
    (AnySelection, selection),
    (AnyScore, score),
    (AnyTime, time),
    (AnyEncoder, encoder),
    (MLP, mlp),
    (AnyExtractor, extractor),
)


def fields() -> Iterator[Any]:
    for union, outcome in UNIONS:
        for cls in members(union):
            for name in cls.model_fields:
                if name != tag_of(cls):
                    yield pytest.param(cls, name, outcome, id=f"{cls.__name__}.{name}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("cls", "name", "outcome"), list(fields()))
def test_a_field_acts(cls: type[Config], name: str, outcome: Any) -> None:
    key = f"{cls.__name__}.{name}"
    if key in REASONS:
        return
    assert key in OTHER or name in OTHER, f"{key} is new: give OTHER another value of it"
    config = example(cls)
    value = OTHER.get(key, OTHER.get(name))
    changed = cls(**{**dict(config), name: value})
    assert getattr(changed, name) != getattr(config, name), f"{key}: OTHER has the example's value"
    before, after = outcome(config), outcome(changed)
    assert before.shape != after.shape or not torch.equal(before, after), f"{key} changes nothing"


@pytest.mark.parametrize(
    ("union", "outcome"), UNIONS, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_same_fields_give_the_same_result(union: Any, outcome: Any) -> None:
    """Or a field that does nothing would seem to act."""
    for cls in members(union):
        assert torch.equal(outcome(example(cls)), outcome(example(cls))), cls.__name__


def final(base: type[Config]) -> Iterator[type[Config]]:
    for cls in base.__subclasses__():
        yield from final(cls) if cls.is_abstract else (cls,)


def test_no_configuration_is_left_out() -> None:
    """Of what is trained or samples: each final class is of one of the unions."""
    wings = ("ddice.dice_backends.", "ddice.diffusion.", "ddice.extractors.", "ddice.ope.")
    tried = {cls for union, _ in UNIONS for cls in members(union)}
    left = {cls for cls in final(Config) if cls.__module__.startswith(wings)} - tried
    assert left == ELSEWHERE
