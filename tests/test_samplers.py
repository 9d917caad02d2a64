from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gaussian import CENTRAL, FINE, STATES, data
from oracles import VP
from pydantic import TypeAdapter
from torch import Tensor, nn

from ddice.dice_backends import PiecewiseF
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import MLP, ResidualScore
from ddice.diffusion.prediction import NoisePrediction
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import (
    Actor,
    AnySampler,
    AnySelection,
    Diffusion,
    DiffusionSampler,
    Gaussian,
    LowerBoundSelection,
    MeanSelection,
    MinimumSelection,
    Selection,
    SoftmaxSelection,
)
from ddice.diffusion.samplers.reference import LOG_STD
from ddice.diffusion.schedule import VariancePreserving
from ddice.diffusion.solvers import DDIM, PUBLISHED
from ddice.extractors import SelectOnly
from ddice.policies.policy import make_policy

TINY = DiffusionPrior(prediction=NoisePrediction(), network=ResidualScore(width=8, blocks=1))


# Selection.

Q = torch.tensor(
    [[[1.0, 2.0, 6.0]], [[3.0, 4.0, -1.0]]]
)  # (2 members, 1 state, 3 candidates): means 2, 3, 2.5, minima 1, 2, -1


def test_mean_and_minimum_by_hand() -> None:
    assert Selection(rule="mean").select(Q, None).tolist() == [1]
    assert Selection(rule="minimum").select(Q, None).tolist() == [1]
    other = torch.tensor([[[1.0, 9.0]], [[2.0, 0.0]]])
    assert Selection(rule="mean").select(other, None).tolist() == [1]
    assert Selection(rule="minimum").select(other, None).tolist() == [0]


def test_rows_are_chosen_apart() -> None:
    q = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [5.0, 5.1]]])
    for rule in ("mean", "minimum", "softmax"):
        assert Selection(rule=rule).select(q, None).tolist() == [1, 0, 1]
    members = torch.cat([q, q + 1])
    assert Selection(rule="lcb").select(members, None).tolist() == [1, 0, 1]


def test_the_lower_bound_by_hand() -> None:
    """Members 1 and 3, 2 and 4, 6 and -1: means 2, 3, 2.5, sample deviations sqrt 2, sqrt 2, 7 /
    sqrt 2.
    """
    root = 2**0.5
    expected = torch.tensor([[2 - 0.5 * root, 3 - 0.5 * root, 2.5 - 0.5 * 7 / root]])
    torch.testing.assert_close(Selection(rule="lcb", coefficient=0.5).scores(Q), expected)
    agreeing = torch.tensor([[[4.0, 0.0]], [[4.0, 10.0]]])  # means 4 and 5, deviations 0 and 7.07
    for coefficient, chosen in ((0.1, 1), (0.2, 0)):
        rule = Selection(rule="lcb", coefficient=coefficient)
        assert rule.select(agreeing, None).tolist() == [chosen]


def test_the_lower_bound_holds_mean_and_minimum() -> None:
    """The coefficient 0 is the mean; of two members, 1 / sqrt 2 is the minimum."""
    q = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for coefficient, rule in ((0.0, "mean"), (2**-0.5, "minimum")):
        bound = Selection(rule="lcb", coefficient=coefficient)
        torch.testing.assert_close(bound.scores(q), Selection(rule=rule).scores(q))


def test_a_rule_is_a_class_that_holds_its_own_fields() -> None:
    """The same from Python, from a dict and from JSON; what a rule does not read is refused."""
    adapter: TypeAdapter[Any] = TypeAdapter(AnySelection)
    for fields, expected in (
        ({}, MeanSelection()),
        ({"rule": "minimum"}, MinimumSelection()),
        ({"rule": "softmax", "temperature": 0.5}, SoftmaxSelection(temperature=0.5)),
        ({"rule": "lcb", "coefficient": 2.0}, LowerBoundSelection(coefficient=2.0)),
    ):
        made = Selection(**fields)
        assert type(made) is type(expected)
        assert made == expected
        assert Selection.model_validate(expected.model_dump()) == expected
        assert adapter.validate_json(expected.model_dump_json()) == expected
    foreign = {"mean": "temperature", "lcb": "temperature", "softmax": "coefficient"}
    for rule, field in foreign.items():
        with pytest.raises(ValueError, match=f"unknown field .*{field!r}"):
            Selection(rule=rule, **{field: 1.0})
        with pytest.raises(ValueError, match=f"unknown field .*{field!r}"):
            SelectOnly(selection={"rule": rule, field: 1.0})
    with pytest.raises(ValueError, match=r"unknown rule 'mode'.*known are lcb, mean, mini"):
        Selection(rule="mode")
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Selection(rule="lcb", coefficient=-0.1)


def test_a_lower_bound_of_one_member_is_refused() -> None:
    """By the extractor before it trains, by the policy when it is made, and, with a callable of the
    user's, at its first call; with one candidate nothing is compared.
    """
    rule, spec = Selection(rule="lcb"), data().spec
    config = SelectOnly(candidates=2, selection=rule)
    prior, alone = TINY.build(spec), PiecewiseF(critic_members=1).build(spec)
    with pytest.raises(ValueError, match='"lcb" compares the members of the critic, at least 2'):
        config.check(prior, alone)
    config.check(prior, PiecewiseF(critic_members=2).build(spec))
    config.model_copy(update={"candidates": 1}).check(prior, alone)
    sampler = Gaussian(network=MLP(hidden=(4,))).build(spec)
    with pytest.raises(ValueError, match="and this one has 1"):
        make_policy(spec, sampler, candidates=2, selection=rule, q=alone.q)
    mean = make_policy(spec, sampler, candidates=2, selection=Selection(), q=alone.q)
    with pytest.raises(ValueError, match="and this one has 1"):
        mean.with_settings(selection=rule)
    own = make_policy(spec, sampler, candidates=2, selection=rule, q=lambda s, a: a.sum(-1))
    with pytest.raises(ValueError, match="and this one has 1"):
        own.act(torch.zeros(spec.observations.size))


def test_without_random_numbers_a_softmax_is_an_argmax() -> None:
    assert Selection(rule="softmax", temperature=100).select(Q, None).tolist() == [1]


@pytest.mark.oracle
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_softmax_frequencies(temperature: float) -> None:
    """Probabilities exp(mean / T) / sum, from the equally spaced uniform numbers that are each
    interval's share exactly.
    """
    count = 10_000
    uniform = (torch.arange(count) + 0.5) / count
    picked = Selection(rule="softmax", temperature=temperature).select(
        Q.expand(2, count, 3), uniform
    )
    weights = np.exp(np.array([2, 3, 2.5]) / temperature)
    np.testing.assert_allclose(
        np.bincount(picked, minlength=3) / count, weights / weights.sum(), atol=2 / count
    )


def test_softmax_at_the_edges() -> None:
    rule = Selection(rule="softmax", temperature=1e-3)
    edges = torch.tensor([0.0, 1.0 - 2**-24])
    assert rule.select(
        torch.tensor([[[1e4, -1e4, 1e4 - 50], [0.0, 0.0, 0.0]]]), edges
    ).tolist() == [0, 2]
    assert rule.select(torch.full((1, 2, 3), -1e30), edges).tolist() == [0, 2]


# Diffusion.


class Known(nn.Module):
    """A network that predicts the noise of a point mass at `scale` * feature: every solver is
    exact for it.
    """

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, features: Tensor, x: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = time[..., 2:3], time[..., 3:4]
        return (x - alpha * self.scale * features) / sigma


@pytest.mark.oracle
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("solver", [PUBLISHED, DDIM(evaluations=3), FINE], ids=lambda s: s.kind)
def test_states_and_candidates_stand_where_they_belong(solver, clip: bool) -> None:
    """Each of B states and K candidates: the exact map alpha' x0 + sigma' / sigma (x - alpha
    x0), where x0 is clipped to [-1, 1] or not.
    """
    encoder = TINY.encoder.build(data().spec.normalizer.mean, data().spec.normalizer.std)
    sampler = DiffusionSampler(
        Diffusion(prior=TINY, solver=solver, clip_denoised=clip),
        encoder,
        Known(3.0 if clip else 0.1),
        None,
    )
    noise = torch.randn(2, 5, 1, generator=torch.Generator().manual_seed(0))
    clean = (3.0 if clip else 0.1) * (
        (STATES - data().spec.normalizer.mean[0]) / data().spec.normalizer.std[0]
    )[:, None]
    assert (clean.abs() > 1).any() == clip
    clean = clean.clamp(-1, 1)
    end, start = VP().sigma(1e-3), VP().sigma(1.0)
    expected = VP().alpha(1e-3) * clean + end / start * (noise - VP().alpha(1.0) * clean)
    torch.testing.assert_close(sampler(STATES, noise), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guided", [False, True])
def test_a_row_does_not_depend_on_its_batch(guided: bool) -> None:
    config = Diffusion(
        prior=TINY,
        guidance=Guidance(network=MLP(hidden=(8,), activation="silu")) if guided else None,
        clip_denoised=False,
    )
    sampler = config.build(data().spec)
    observations = torch.randn(7, 1, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(7, 3, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = sampler(observations, noise)
        torch.testing.assert_close(
            sampler(observations[2:3], noise[2:3]), together[2:3], rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(
            sampler(observations, noise[:, 1:2]), together[:, 1:2], rtol=1e-5, atol=1e-6
        )


def test_guidance_enters_with_its_scale() -> None:
    """g = c a has the gradient c: noise - sigma kappa c at every call, here of one DDIM step."""
    config = Diffusion(
        prior=TINY,
        guidance=Guidance(network=MLP(hidden=())),
        guidance_scale=2.0,
        solver=DDIM(evaluations=1),
        clip_denoised=False,
    )
    sampler = config.build(data().spec)
    plain = DiffusionSampler(config, sampler.encoder, sampler.network, None)
    slope = dict(sampler.guidance.named_parameters())["linear_0_weight"][1].item()
    noise = CENTRAL[None, :, None].expand(2, -1, -1)
    with torch.no_grad():
        moved = sampler(STATES, noise) - plain(STATES, noise)
    alpha, sigma, end = VP().alpha(1.0), VP().sigma(1.0), 1e-3
    step = VP().alpha(end) - VP().sigma(end) / sigma * alpha  # the coefficient of the clean action
    torch.testing.assert_close(
        moved, torch.full_like(moved, step * sigma**2 / alpha * 2.0 * slope), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["diffusion", "gaussian"])
def test_fixed_latents_start_alike_for_every_number_of_candidates(kind: str) -> None:
    config = Diffusion(prior=TINY, clip_denoised=False) if kind == "diffusion" else Gaussian()
    sampler = config.build(data().spec)
    latents = sampler.latents(6, 2)
    assert latents.shape == (6, 2)
    assert torch.equal(latents, sampler.latents(6, 2))
    assert torch.equal(latents[:3], sampler.latents(3, 2))
    assert len(latents.unique(dim=0)) == 6
    assert not latents[0].any()  # the middle of the policy


# Gaussian.


@pytest.mark.oracle
def test_the_density_of_the_gaussian() -> None:
    sampler = Gaussian(network=MLP(hidden=(8,))).build(data().spec)
    actions = torch.tensor([[0.3], [-0.9]])
    mean, log_std = (x.detach() for x in sampler.mean_and_log_std(STATES))
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(actions).sum(
        -1
    ) + 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(sampler.log_density(STATES, actions).detach(), expected)
    assert (mean.abs() < 1).all()
    assert ((log_std > LOG_STD[0]) & (log_std < LOG_STD[1])).all()


@pytest.mark.oracle
def test_candidates_of_the_gaussian() -> None:
    sampler = Gaussian(network=MLP(hidden=(8,))).build(data().spec)
    noise = torch.tensor([[[0.0], [1.0], [-2.0]], [[0.5], [0.0], [3.0]]])
    mean, log_std = sampler.mean_and_log_std(STATES)
    torch.testing.assert_close(
        sampler(STATES, noise), mean[:, None] + log_std.exp()[:, None] * noise
    )


# Actor.


@pytest.mark.oracle
def test_the_action_of_an_actor() -> None:
    """tanh of an affine map of the standardised state, by hand; whatever the noise."""
    sampler = Actor(network=MLP(hidden=())).build(data().spec)
    weights = dict(sampler.network.named_parameters())
    slope, shift = weights["linear_0_weight"].item(), weights["linear_0_bias"].item()
    mean, std = data().spec.normalizer.mean[0], data().spec.normalizer.std[0]
    noise = torch.tensor([[[0.0], [1.0]], [[0.5], [3.0]]])
    got = sampler(STATES, noise)
    for i, state in enumerate((-1.0, 1.0)):
        expected = np.tanh(slope * (state - mean) / std + shift)
        assert got[i].flatten().tolist() == pytest.approx([expected, expected], abs=1e-6)
    assert not sampler.reads_noise


def test_configurations_survive_json() -> None:
    adapter = TypeAdapter(AnySampler)
    for config in (
        Diffusion(prior=TINY, guidance=Guidance(), solver=FINE, clip_denoised=False),
        Gaussian(network=MLP(hidden=(3,))),
        Actor(network=MLP(hidden=(3,))),
    ):
        assert adapter.validate_json(config.model_dump_json()) == config
    assert VariancePreserving() == TINY.schedule
