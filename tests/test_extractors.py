"""Extractors on a bandit whose behaviour is Gaussian: tilted and weighted distributions are
known.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import pytest
import torch
from gaussian import FINE, SMALL, STATES, STD, data, mean_of, prior
from scipy.stats import kstest, norm
from torch import Tensor
from typing_extensions import Self, get_protocol_members

from ddice.data import Batch, Spec, Transitions
from ddice.dice_backends import GivenRatio, GivenRatioBackend
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import MLP, Encoder, Network, ResidualScore
from ddice.diffusion.prior import DiffusionPrior, PriorConfig, network_denoiser
from ddice.diffusion.samplers import Selection
from ddice.diffusion.solvers import Denoiser
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.extractors import (
    AnyExtractor,
    Extractor,
    GaussianBC,
    GuideThenSelect,
    SelectOnly,
    WeightedBC,
)
from ddice.parts.part import Optimizer
from ddice.policies.policy import Policy, make_policy

GUIDANCE = Guidance(
    network=MLP(hidden=(64, 64), activation="silu", initialisation="kaiming"),
    optimizer=Optimizer(learning_rate=5e-3, decay="cosine"),
    batch_size=256,
    noises_per_action=8,
)
QUICK = Optimizer(learning_rate=2e-3, decay="cosine")
COUNT = 1000
OBSERVATIONS = STATES.repeat_interleave(COUNT, 0)
BEST, TEMPERATURE = 0.1, 0.04  # reward -(a - BEST)^2, ratio exp(reward / TEMPERATURE)


def reward(actions: Tensor) -> Tensor:
    return -((actions[..., 0] - BEST) ** 2)


def q_function(observations: Tensor, actions: Tensor) -> Tensor:
    return reward(actions)[None]


def given(
    ratio: Callable[[Batch], Tensor], q: Callable[[Tensor, Tensor], Tensor] | None = None
) -> GivenRatioBackend:
    return GivenRatio(source=ratio, q=q).fit(data())


def peaked() -> GivenRatioBackend:
    return given(lambda batch: torch.exp(reward(batch.actions) / TEMPERATURE), q_function)


def ranked() -> GivenRatioBackend:
    return given(
        lambda batch: torch.ones_like(batch.rewards),
        lambda observations, actions: actions[:, 0][None],
    )


def optimum(state: float) -> tuple[float, float]:
    """Mean and deviation of N(m, STD^2) exp(-(a - BEST)^2 / TEMPERATURE): precisions add."""
    precision = STD**-2 + 2 / TEMPERATURE
    return (mean_of(state) * STD**-2 + BEST * 2 / TEMPERATURE) / precision, precision**-0.5


@cache
def guided() -> Policy:
    return GuideThenSelect(candidates=1, guidance=GUIDANCE, solver=FINE).fit(
        data(), prior=prior(), backend=peaked(), steps=1500, progress=False
    )


def assert_optimum(policy: Policy, tolerance: float) -> None:
    """Per state, mean, deviation and expected reward of the exact tilted distribution."""
    actions = policy.act(OBSERVATIONS, seed=0).reshape(2, -1)
    for i, state in enumerate((-1.0, 1.0)):
        mean, std = optimum(state)
        assert actions[i].mean().item() == pytest.approx(mean, abs=tolerance)
        assert actions[i].std().item() == pytest.approx(std, rel=0.2)
        behaves, reaches = (
            -(s**2) - (m - BEST) ** 2 for m, s in ((mean_of(state), STD), (mean, std))
        )
        gained = reward(actions[i][:, None]).mean().item() - behaves
        assert gained == pytest.approx(reaches - behaves, rel=0.25)


@pytest.mark.gate
@pytest.mark.oracle
def test_guidance_reaches_the_known_optimum() -> None:
    """Means 0.1 +- 0.067 where the behaviour has +- 0.3; measured within 0.015."""
    assert_optimum(guided(), 0.03)


@pytest.mark.oracle
def test_weighted_cloning_reaches_the_known_optimum() -> None:
    config = WeightedBC(optimizer=QUICK, batch_size=512, solver=FINE)
    assert_optimum(
        config.fit(data(), prior=prior(), backend=peaked(), steps=1000, progress=False), 0.03
    )


@pytest.mark.gate
@pytest.mark.oracle
def test_weighted_cloning_cuts_what_weighs_nothing() -> None:
    """Weights 0 and 1 by the sign of a - m: samples follow the half normal distribution.
    Kolmogorov-Smirnov distance, behaviour has 0.5.
    """
    above = given(lambda batch: (batch.actions[..., 0] > 0.3 * batch.observations[..., 0]).float())
    config = WeightedBC(
        optimizer=Optimizer(learning_rate=3e-3, decay="cosine"), batch_size=512, solver=FINE
    )
    policy = config.fit(data(), prior=prior(), backend=above, steps=1200, progress=False)
    actions = policy.act(OBSERVATIONS, seed=0).reshape(2, -1)
    for i, state in enumerate((-1.0, 1.0)):
        distance = kstest(
            (actions[i] - mean_of(state)) / STD, lambda x: np.clip(2 * norm.cdf(x) - 1, 0, 1)
        ).statistic
        assert distance < 0.1


@pytest.mark.oracle
def test_the_gaussian_takes_the_weighted_moments() -> None:
    """The weighted likelihood is greatest at the weighted mean and deviation of each state's
    actions.
    """
    config = GaussianBC(
        network=MLP(hidden=(32,)),
        optimizer=Optimizer(learning_rate=3e-3, decay="cosine"),
        batch_size=2048,
    )
    policy = config.fit(data(), backend=peaked(), steps=500, progress=False)
    means, log_stds = policy.sampler.mean_and_log_std(STATES)
    actions, states = data().actions[:, 0].double().numpy(), data().observations[:, 0].numpy()
    for i, state in enumerate((-1.0, 1.0)):
        mine = actions[states == state]
        w = np.exp(-((mine - BEST) ** 2) / TEMPERATURE)
        mean = np.average(mine, weights=w)
        assert means[i].item() == pytest.approx(mean, abs=5e-3)
        assert log_stds[i].exp().item() == pytest.approx(
            np.average((mine - mean) ** 2, weights=w) ** 0.5, rel=0.04
        )
        assert (mean, np.average((mine - mean) ** 2, weights=w) ** 0.5) == pytest.approx(
            optimum(state), abs=2e-3
        )
    deterministic = policy.act(STATES, deterministic=True)
    torch.testing.assert_close(deterministic, means)


@pytest.mark.oracle
@pytest.mark.parametrize("candidates", [1, 6])
def test_select_only_plays_the_best_of_its_candidates(candidates: int) -> None:
    """With Q = a the action is the largest of K draws: F(x)^K for the normal distribution
    function F.
    """
    policy = SelectOnly(candidates=candidates, solver=FINE).fit(
        data(), prior=prior(), backend=ranked()
    )
    actions = policy.act(OBSERVATIONS, seed=0).reshape(2, -1)
    for i, state in enumerate((-1.0, 1.0)):
        distance = kstest(
            (actions[i] - mean_of(state)) / STD, lambda x: norm.cdf(x) ** candidates
        ).statistic
        assert (
            distance < 1.63 / COUNT**0.5 + 0.03
        )  # the 1 % quantile of the statistic, and what the prior itself is off


@pytest.mark.oracle
def test_selection_adds_to_guidance() -> None:
    """The best of 4 guided candidates: expected reward of the nearest of 4 draws to BEST, by
    simulation of the exact distribution.
    """
    policy = make_policy(
        data().spec, guided().sampler, candidates=4, selection=Selection(), q=q_function
    )
    got = reward(policy.act(OBSERVATIONS, seed=0)).reshape(2, -1).mean(1)
    draws = np.random.default_rng(0).normal(size=(100_000, 4))
    for value, state in zip(got, (-1.0, 1.0), strict=True):
        mean, std = optimum(state)
        expected = -np.square(mean + std * draws - BEST).min(1).mean()
        assert value.item() == pytest.approx(expected, rel=0.35)  # measured: 6 and 21 %


class Spy(torch.nn.Module):
    """Passes calls on, and remembers the actions that came with them."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner, self.calls = inner, []

    def forward(self, features: Tensor, actions: Tensor, *rest: Tensor) -> Tensor:
        self.calls.append(actions.detach().clone())
        return self.inner(features, actions, *rest)


TINY = DiffusionPrior(network=ResidualScore(width=8, blocks=1), batch_size=16, ema=0.9)
CONFIGS = [
    GuideThenSelect(
        candidates=1, guidance=Guidance(network=MLP(hidden=(8,), activation="silu"), batch_size=16)
    ),
    WeightedBC(batch_size=16),
    GaussianBC(network=MLP(hidden=(8,)), batch_size=16),
    SelectOnly(candidates=1),
]
each = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)


@each
def test_no_generated_action_reaches_prior_or_critic_while_training(config) -> None:
    """The prior is not called at all, and neither is Q: whatever an extractor is trained on are
    noised actions of the dataset.
    """
    owner = TINY.build(data().spec)
    owner.network, owner.averaged = Spy(owner.network), Spy(owner.averaged)
    asked: list[Tensor] = []

    def critic(observations: Tensor, actions: Tensor) -> Tensor:
        asked.append(actions)
        return actions[:, 0][None]

    backend = given(lambda batch: batch.actions[..., 0].exp(), critic)
    original = owner.averaged.inner.state_dict()
    if config.kind == "weighted_bc":
        owner.averaged.state_dict = (
            owner.averaged.inner.state_dict
        )  # it copies the prior's weights, which is no call
    extractor = config.build(data().spec, prior=owner)
    before = {name: value.clone() for name, value in original.items()}
    extractor.fit(data(), backend=backend, steps=5, progress=False)
    assert not owner.network.calls
    assert not owner.averaged.calls
    assert not asked
    assert all(
        torch.equal(before[name], value)
        for name, value in owner.averaged.inner.state_dict().items()
    )


@pytest.mark.oracle
def test_guidance_and_cloning_see_noised_dataset_actions_only() -> None:
    """(a_t - alpha a) / sigma is standard normal noise for the dataset's own actions; one row's
    noises share one time, u^power.
    """
    guidance = CONFIGS[0].guidance.model_copy(update={"time_power": 3.0})
    extractor = (
        CONFIGS[0]
        .model_copy(update={"guidance": guidance})
        .build(data().spec, prior=TINY.build(data().spec))
    )
    spy = Spy(extractor.network)
    extractor._modules["network"] = spy
    times: list[Tensor] = []
    spy.register_forward_hook(lambda module, inputs, output: times.append(inputs[2]))
    batch = data().sample(4000, seed=0, step=0)
    extractor.update(batch, step=0, log_ratio=torch.zeros(4000))
    noised, alpha, sigma = spy.calls[0], times[0][..., 2:3], times[0][..., 3:4]
    assert noised.shape == (4000, 4, 1)
    assert times[0].shape == (4000, 1, 4)
    noise = ((noised - alpha * batch.actions[:, None]) / sigma).double()
    usable = noise[
        (sigma > 0.1).squeeze()
    ].flatten()  # float32 loses the noise of the first instants
    assert abs(usable.mean()) < 5 / len(usable) ** 0.5
    assert usable.var().item() == pytest.approx(1, abs=5 * (2 / len(usable)) ** 0.5)
    uniform = ((times[0][..., 0].flatten() - 1e-3) / (1 - 1e-3)).clamp(min=0) ** (1 / 3)
    assert kstest(uniform, "uniform").statistic < 1.63 / len(uniform) ** 0.5


def test_weights_are_divided_by_their_running_mean() -> None:
    """The mean of all batches so far, later of the last hundred; the cap counts."""
    extractor = WeightedBC(log_cap=1.0, batch_size=4).build(
        data().spec, prior=TINY.build(data().spec)
    )
    batch = data().sample(4, seed=0, step=0)
    first, second = torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([0.0, 0.0, 0.0, 40.0])
    factors, _ = extractor.factors(batch, first.log(), 0)
    torch.testing.assert_close(factors, first / 2)
    factors, metrics = extractor.factors(batch, second.log(), 1)
    torch.testing.assert_close(factors, torch.clamp(second / 6, max=np.e))
    assert metrics["cap_rate"].item() == 0.25
    third = torch.tensor([1.0, 1.0, 1.0, 1.0])
    factors, _ = extractor.factors(batch, third.log(), 2)
    torch.testing.assert_close(factors, third / ((2 + 10 + 1) / 3))
    mean = extractor.log_mean.exp().item()
    factors, _ = extractor.factors(batch, first.log(), 5000)
    torch.testing.assert_close(factors, first / (0.99 * mean + 0.01 * 2))


def test_batch_weights_enter_the_running_mean() -> None:
    extractor = GaussianBC().build(data().spec)
    mean = extractor.follow_mean(torch.tensor([1.0, 5.0]).log(), torch.tensor([3.0, 1.0]), 0)
    assert mean.exp().item() == pytest.approx(2)


@pytest.mark.oracle
def test_a_factor_of_the_ratios_changes_nothing() -> None:
    """So the temperature does not change the step size."""
    parts = []
    for scale in (0.0, 11.0):
        extractor = GaussianBC(network=MLP(hidden=(8,))).build(data().spec)
        for step in range(10):
            batch = data().sample(64, seed=0, step=step)
            extractor.update(batch, step=step, log_ratio=3 * batch.actions[..., 0] + scale)
        parts.append(extractor)
    for one, other in zip(parts[0].parameters(), parts[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_where_weighted_cloning_starts() -> None:
    owner = TINY.fit(data(), steps=3, progress=False)
    copied, fresh = (
        WeightedBC(init=init).build(data().spec, prior=owner) for init in ("prior", "fresh")
    )
    for mine, theirs in zip(
        copied.model.network.parameters(), owner.averaged.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
    weight = "linear_0_weight"
    assert not torch.equal(getattr(fresh.model.network, weight), getattr(owner.averaged, weight))
    assert not torch.equal(getattr(fresh.model.network, weight), getattr(owner.network, weight))


def untouched(batch: Batch) -> Tensor:
    raise AssertionError("training began")


def test_several_candidates_without_q_are_refused_before_training() -> None:
    backend = GivenRatio(source=untouched)
    for config in (
        GuideThenSelect(candidates=4),
        SelectOnly(),
        WeightedBC(candidates=2),
        GaussianBC(candidates=2),
    ):
        with pytest.raises(ValueError, match=f"candidates = {config.candidates} needs a Q"):
            config.fit(
                data(), prior=TINY.build(data().spec), backend=backend.build(data().spec), steps=5
            )
    with pytest.raises(ValueError, match="needs a Q"):
        SelectOnly().fit(data(), prior=TINY.build(data().spec))


def test_missing_parts_are_named() -> None:
    owner, backend = TINY.build(data().spec), peaked()
    for config in (GuideThenSelect(), WeightedBC(), SelectOnly()):
        with pytest.raises(ValueError, match="needs a prior"):
            config.fit(data(), backend=backend, steps=1)
        with pytest.raises(ValueError, match="needs a prior"):
            config.build(data().spec)
    for config in (GuideThenSelect(candidates=1), WeightedBC(), GaussianBC()):
        with pytest.raises(ValueError, match="needs a backend for its ratios"):
            config.fit(data(), prior=owner, steps=1)
    for config in CONFIGS[:3]:
        with pytest.raises(ValueError, match="learns from ratios"):
            config.build(data().spec, prior=owner).update(data().sample(4, seed=0, step=0), step=0)


def test_a_configuration_is_no_trained_part() -> None:
    with pytest.raises(
        TypeError,
        match=(
            r"expected backend to be a trained part, got the configuration "
            r"GivenRatio.*\.fit\(data"
        ),
    ):
        GaussianBC().fit(data(), backend=GivenRatio(source=untouched), steps=1)
    with pytest.raises(TypeError, match="expected prior to be a trained part"):
        SelectOnly(candidates=1).fit(data(), prior=TINY, backend=ranked())


def test_a_prior_of_other_seeds() -> None:
    owner = TINY.build(data().spec, seed=(0, 1))
    with pytest.raises(ValueError, match=r"the prior was trained with seed \(0, 1\)"):
        WeightedBC().build(data().spec, seed=0, prior=owner)
    with pytest.raises(ValueError, match="the prior was trained with seed 0"):
        WeightedBC().build(data().spec, seed=(0, 1), prior=owner.select(0))
    assert WeightedBC().build(data().spec, seed=7, prior=owner.select(1)).seed == 7


def test_parts_of_different_spaces() -> None:
    spec = data().spec
    other = spec.model_copy(update={"actions": spec.actions.model_copy(update={"low": (-3.0,)})})
    with pytest.raises(ValueError, match="different actions"):
        WeightedBC().fit(data(), prior=TINY.build(other), backend=peaked(), steps=1)
    with pytest.raises(ValueError, match="different actions"):
        WeightedBC().fit(
            data(),
            prior=TINY.build(spec),
            backend=GivenRatio(source=untouched).build(other),
            steps=1,
        )


def test_several_seeds_have_no_single_policy() -> None:
    extractor = GaussianBC().build(data().spec, seed=(0, 1))
    with pytest.raises(ValueError, match=r"take one with select\(i\)"):
        extractor.policy()


def stuck(log_ratio: Tensor, learning_rate: float) -> Extractor:
    """Guidance whose last layer starts at zero, after some steps."""
    config = GUIDANCE.model_copy(
        update={"optimizer": Optimizer(learning_rate=learning_rate), "batch_size": 64}
    )
    extractor = GuideThenSelect(candidates=1, guidance=config).build(
        data().spec, prior=TINY.build(data().spec)
    )
    with torch.no_grad():
        list(extractor.network.parameters())[-2].zero_()
    for step in range(40):
        extractor.update(data().sample(64, seed=0, step=step), step=step, log_ratio=log_ratio)
    return extractor


def test_a_guidance_that_did_not_learn_is_said_to() -> None:
    uneven = torch.linspace(-3, 3, 64)
    with pytest.warns(UserWarning, match="it has not learned"):
        stuck(uneven, 1e-9).policy()


@pytest.mark.parametrize("case", ["learned", "nothing to learn", "not trained"])
def test_no_false_alarm(case: str) -> None:
    if case == "learned":
        extractor = GuideThenSelect(candidates=1, guidance=GUIDANCE).build(
            data().spec, prior=TINY.build(data().spec)
        )
        for step in range(60):
            batch = data().sample(256, seed=0, step=step)
            extractor.update(batch, step=step, log_ratio=5 * batch.actions[..., 0])
    elif case == "nothing to learn":
        extractor = stuck(torch.linspace(-0.1, 0.1, 64), 1e-9)
    else:
        extractor = GuideThenSelect(candidates=1, guidance=GUIDANCE).build(
            data().spec, prior=TINY.build(data().spec)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor.policy()


def test_the_policy_remembers_its_extractor_and_its_rule() -> None:
    config = SelectOnly(candidates=3, selection=Selection(rule="softmax", temperature=0.5))
    policy = config.fit(data(), prior=prior(), backend=ranked())
    assert policy.config.notes["extractor"] == "select_only"
    assert policy.config.selection == config.selection
    assert policy.config.sampler.prior == SMALL
    assert policy.config.sampler.solver == config.solver


# -- a prior that was trained elsewhere


@dataclass(frozen=True)
class Elsewhere:
    """All that is asked of a trained prior and nothing else: neither a `Part` nor a `Prior`."""

    spec: Spec
    config: PriorConfig
    encoder: Encoder
    averaged: Network
    seed: int = 0
    seed_shape: tuple[int, ...] = ()
    step: int = 1500
    batch_size: int = 512

    def denoiser(self, features: Tensor) -> Denoiser:
        return network_denoiser(self.averaged, features, self.config)

    def identity(self, data: Transitions) -> str:
        return f"elsewhere:{data.spec.behaviour_fingerprint}"

    def select(self, index: int) -> Self:
        raise ValueError("one seed alone")


@pytest.mark.parametrize(
    "config",
    [
        GuideThenSelect(guidance=GUIDANCE, candidates=4),
        WeightedBC(candidates=2, batch_size=64),
        SelectOnly(candidates=4),
    ],
    ids=lambda config: config.kind,
)
def test_a_prior_of_ones_own_is_as_good_as_ours(config: AnyExtractor) -> None:
    """The same networks in the two give the same policies, bit for bit."""
    ours = prior()
    own: TrainedPrior = Elsewhere(ours.spec, ours.config, ours.encoder, ours.averaged)
    methods = {"denoiser", "identity", "select"}
    assert {field.name for field in fields(Elsewhere)} | methods == get_protocol_members(
        TrainedPrior
    )
    policies = [
        config.fit(
            data(), prior=given, backend=peaked(), steps=5, seed=0, device="cpu", progress=False
        )
        for given in (ours, own)
    ]
    first, second = (policy.act(STATES.numpy(), deterministic=True, seed=0) for policy in policies)
    assert np.isfinite(first).all()
    assert np.ptp(first) > 0
    assert (first == second).all()


def test_the_identity_of_an_extractor_has_that_of_its_prior() -> None:
    ours = prior()
    own = Elsewhere(ours.spec, ours.config, ours.encoder, ours.averaged)
    part = GuideThenSelect(guidance=GUIDANCE).build(data().spec, seed=0, prior=own)
    assert part.identity(data()).endswith(f"+{own.identity(data())}@1500")
