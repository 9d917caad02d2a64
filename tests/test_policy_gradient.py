"""The policy-gradient extractor where its optimum is known: Q is quadratic in the action, the
behaviour has known means, and the actor can represent every pair of actions.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from gaussian import STATES, data
from scipy.optimize import brentq
from torch import Tensor

from ddice.data import Transitions, load_dataset
from ddice.dice_backends import GivenRatio, GivenRatioBackend, PiecewiseF
from ddice.dice_backends.reduction import LowerBound, Minimum, Reduction
from ddice.diffusion.networks import MLP
from ddice.diffusion.samplers import Actor, Selection
from ddice.extractors import PolicyGradient
from ddice.extractors.policy_gradient import PolicyGradientExtractor, actor_loss, scores_of
from ddice.parts.part import Optimizer
from ddice.policies.engines import QCallable
from ddice.policies.policy import load_policy, make_policy
from ddice.runs.recipe import Recipe
from ddice.runs.stages import jointly
from ddice.runs.training import train
from ddice.testing.extractors import EXTRACTOR_CHECKS, check_extractor

STEPS = 300
NETWORK = MLP(hidden=(8,))
QUICK = Optimizer(learning_rate=0.03, decay="cosine")
EXACT = PolicyGradient(network=MLP(hidden=()), optimizer=QUICK)  # affine: two states, two numbers
QUIET: dict[str, Any] = {"device": "cpu", "progress": False}


def best(states: Tensor) -> Tensor:
    """c(s), far from the behaviour's means of -0.3 and 0.3."""
    return 0.1 - 0.5 * states


def quadratic(observations: Tensor, actions: Tensor) -> Tensor:
    """-1 - |a - c(s)|^2, one member. |Q| is at least 1, so that its mean has a fixed point."""
    return (-1 - (actions - best(observations)).square()).sum(-1)[None]


def times(factor: float) -> QCallable:
    return lambda observations, actions: factor * quadratic(observations, actions)


def given(q: QCallable | None) -> GivenRatioBackend:
    return GivenRatio(source=np.ones(data().spec.source_rows), q=q).fit(data())


def trained(config: PolicyGradient, q: QCallable, steps: int = STEPS) -> PolicyGradientExtractor:
    """The actor after `steps` steps on all of the data at once."""
    part = config.build(data().spec).until(steps)
    batch = data().full()
    for step in range(steps):
        part.update(batch, q=q, step=step)
    return part


def cloned() -> Tensor:
    """The mean action of each state in the data, (2, 1)."""
    full = data().full()
    return torch.stack([full.actions[full.observations[:, 0] == s].mean(0) for s in (-1, 1)])


def optimum(bc_weight: float) -> Tensor:
    """Where the gradient is 0 with the divisor m held fixed, for both states (2, 1):

    (pi - c) / m + bc_weight (pi - mean a) = 0,   m = E|Q(s, pi)| = 1 + E[(pi - c)^2].
    """
    target, means = best(STATES), cloned()

    def action(m: float) -> Tensor:
        return (target + bc_weight * m * means) / (1 + bc_weight * m)

    def excess(m: float) -> float:
        return float(1 + (action(m) - target).square().mean()) - m

    return action(brentq(excess, 0.5, 5.0))


def test_the_loss_by_hand() -> None:
    """Weights 1, 1, 2: E[Q] = 0.75, E|Q| = 1.75, E|pi - a|^2 = 0.5; no gradient in the divisor."""
    scores = torch.tensor([1.0, -2.0, 2.0], requires_grad=True)
    distances = torch.tensor([0.0, 1.0, 0.5])
    weights = torch.tensor([1.0, 1.0, 2.0])
    loss = actor_loss(scores, distances, weights, 0.1)
    assert loss.item() == pytest.approx(-0.75 / 1.75 + 0.1 * 0.5)
    loss.backward()
    torch.testing.assert_close(scores.grad, -weights / 4 / 1.75)
    nothing = actor_loss(torch.zeros(3), distances, weights, 0.1)
    assert nothing.item() == pytest.approx(0.05)


@pytest.mark.oracle
@pytest.mark.parametrize("bc_weight", [0.0, 0.3, 1.0, 10.0, 1e6])
def test_the_actor_reaches_the_known_optimum(bc_weight: float) -> None:
    """Between c(s) and the mean action of the data; the two ends of the range are these."""
    actor = trained(EXACT.model_copy(update={"bc_weight": bc_weight}), quadratic)
    expected = optimum(bc_weight)
    torch.testing.assert_close(actor.model.actions(STATES).detach(), expected, rtol=0, atol=2e-3)
    if bc_weight == 0:
        torch.testing.assert_close(expected, best(STATES))
    if bc_weight == 1e6:
        torch.testing.assert_close(expected, cloned(), rtol=0, atol=1e-5)


@pytest.mark.oracle
def test_the_scale_of_q_does_not_matter() -> None:
    """A power of two changes no bit, another factor rounds."""
    one, binary, decimal = (
        trained(EXACT, times(factor), 50).model.actions(STATES) for factor in (1.0, 1024.0, 1000.0)
    )
    assert torch.equal(binary, one)
    torch.testing.assert_close(decimal, one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("reduction", [Minimum(), LowerBound(pessimism=0.5)], ids=lambda r: r.kind)
def test_scores_have_the_gradient_of_autograd(reduction: Reduction) -> None:
    """Members (1 + m)(a_1 - a_2^2) + m of two: reduced, and their gradient in the actions."""
    inputs = torch.linspace(-0.9, 0.9, 12).reshape(6, 2)

    def q(observations: Tensor, actions: Tensor) -> Tensor:
        value = actions[..., 0] - actions[..., 1] ** 2
        return torch.stack([value, 2 * value + 1])

    ours, theirs = (inputs.clone().requires_grad_() for _ in range(2))
    got = scores_of(q, reduction, torch.zeros(6, 3), ours)
    expected = reduction.reduce(q(torch.zeros(6, 3), theirs))
    torch.testing.assert_close(got, expected)
    weights = torch.arange(6.0)
    (weights * got).sum().backward()
    (weights * expected).sum().backward()
    assert theirs.grad is not None
    assert theirs.grad.abs().sum() > 1
    torch.testing.assert_close(ours.grad, theirs.grad)


# -- the backend is read, and no more


@pytest.fixture(scope="module")
def pendulum() -> Transitions:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the rows that it drops
        return load_dataset(small.arrays(), env=small.ENV)


SMALL = PolicyGradient(network=NETWORK, batch_size=16)
BACKEND = PiecewiseF.model_validate(small.BACKENDS["piecewise_f"])


def test_the_critic_gets_no_gradient(pendulum: Transitions) -> None:
    backend = BACKEND.fit(pendulum, steps=3, **QUIET)
    before = {name: value.clone() for name, value in backend.state().items()}
    for parameter in backend.parameters():
        parameter.grad = None
    requiring = [parameter.requires_grad for parameter in backend.parameters()]
    SMALL.fit(pendulum, backend=backend, steps=3, **QUIET)
    assert all(parameter.grad is None for parameter in backend.parameters())
    assert [parameter.requires_grad for parameter in backend.parameters()] == requiring
    for name, value in backend.state().items():
        assert torch.equal(value, before[name]), name


def test_a_gradient_in_the_critic_is_noticed() -> None:
    """By the conformance suite."""

    class Careless(PolicyGradientExtractor):
        def update(self, batch: Any, *, step: int, log_ratio: Any = None, q: Any = None) -> Any:
            actions = self.model.actions(batch.observations)
            scores = q(batch.observations, actions).mean(-2)
            self.descend(-scores.mean(-1), step)
            return {}

    class Config:
        def __getattr__(self, name: str) -> Any:
            return getattr(SMALL, name)

        def build(self, spec: Any, seed: Any = 0, prior: Any = None) -> Careless:
            return Careless(SMALL, spec, seed)

        def fit(self, data: Any, *, backend: Any, steps: int, seed: Any, **_: Any) -> Any:
            part = self.build(data.spec, seed)
            return part.fit(data, backend=backend, steps=steps, progress=False)

    meant = [c for c in EXTRACTOR_CHECKS if c.__name__ == "no_generated_action_in_training"]
    with pytest.raises(AssertionError, match="a gradient in the parameters of Q"):
        check_extractor(Config(), checks=meant)


def test_trained_together_the_backend_is_what_it_is_alone(pendulum: Transitions) -> None:
    """And the actor learns from the updated Q: another backend's gives another actor."""

    def together(seed: int) -> tuple[Any, Any]:
        backend, actor = BACKEND.build(pendulum.spec, seed), SMALL.build(pendulum.spec)
        backend.until(4), actor.until(4)
        update = jointly(backend, actor)
        for step in range(4):
            metrics = update(pendulum.sample(16, seed=0, step=step), step)
        assert "extractor/q_scale" in metrics
        return backend, actor

    backend, actor = together(0)
    alone = BACKEND.build(pendulum.spec, 0).until(4)
    for step in range(4):
        alone.update(pendulum.sample(16, seed=0, step=step), step=step)
    for name, value in alone.state().items():
        assert torch.equal(backend.state()[name], value), name
    _, other = together(1)
    observations = pendulum.observations[:20]
    assert not torch.equal(actor.model.actions(observations), other.model.actions(observations))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", ["staged", "joint"])
def test_from_a_recipe_to_a_policy_and_found_again(
    schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    fields = {
        "extractor": {"kind": "policy_gradient", **small.EXTRACTORS["policy_gradient"]},
        "evaluation": {"episodes": 0},
        "schedule": schedule,
        "device": "cpu",
    }
    recipe = small.recipe(small.write_npz(tmp_path / "data.npz"), **fields)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    said: list[str] = []
    first, again = (train(recipe, progress=False, say=said.append)[0] for _ in range(2))
    stages = ["backend", "extractor"] if schedule == "staged" else ["joint"]
    said = small.without_alarms(said)
    assert [line.split(":")[0] for line in said] == stages  # found at the second time
    assert first.prior is None
    observations = np.zeros((3, 3), dtype=np.float32)
    actions = first.policy.act(observations, seed=0)
    np.testing.assert_array_equal(again.policy.act(observations, seed=7), actions)
    steps = recipe.steps.extractor if schedule == "staged" else recipe.steps.backend
    assert again.extractor.step == steps
    assert first.policy.config.notes["extractor"] == "policy_gradient"


def test_the_key_of_a_stage_names_q(pendulum: Transitions) -> None:
    """Of given ratios too, where only Q differs, and only off the data."""
    actions = pendulum.actions

    def on_the_data(observations: Tensor, asked: Tensor) -> Tensor:
        known = torch.isin(asked, actions).all(-1)
        return torch.where(known, asked.sum(-1), 2 * asked.sum(-1))[None]

    def plain(observations: Tensor, asked: Tensor) -> Tensor:
        return asked.sum(-1)[None]

    ones = np.ones(pendulum.spec.source_rows)
    part = SMALL.build(pendulum.spec)
    keys = [
        part.stage(backend, steps=5).key(pendulum)
        for backend in (
            GivenRatio(source=ones, q=plain).fit(pendulum),
            GivenRatio(source=ones, q=lambda *given: plain(*given)).fit(pendulum),
            GivenRatio(source=ones, q=on_the_data).fit(pendulum),
            BACKEND.fit(pendulum, steps=1, **QUIET),
            BACKEND.fit(pendulum, steps=2, **QUIET),
        )
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_a_callable_serves_several_seeds() -> None:
    """Of rows (B, S) and (B, A): each seed gets what it gets alone."""

    def q(observations: Tensor, actions: Tensor) -> Tensor:
        assert observations.ndim == 2
        value = -(actions - best(observations)).square().sum(-1)
        return torch.stack([value, value - observations[:, 0]])

    ones = np.ones(data().spec.source_rows)
    config = SMALL.model_copy(update={"reduction": LowerBound(pessimism=0.0)})

    def fit(seed: Any) -> Any:
        backend = GivenRatio(source=ones, q=q).fit(data(), seed=seed)
        return config.fit(data(), backend=backend, steps=5, seed=seed, **QUIET)

    many = fit((3, 5))
    for policy, seed in zip(many, (3, 5), strict=True):
        expected = fit(seed).act(STATES)
        torch.testing.assert_close(policy.act(STATES), expected, rtol=1e-4, atol=1e-5)


# -- refusals


def test_what_has_no_q_to_learn_from_is_refused(pendulum: Transitions) -> None:
    without = given(None)
    for backend in (None, without):
        with pytest.raises(ValueError, match=r"PolicyGradient needs a backend with a Q.*q=\.\.\."):
            EXACT.fit(data(), backend=backend, steps=1)
    with pytest.raises(ValueError, match=r"update\(batch, q=backend\.q, step=step\)"):
        EXACT.build(data().spec).update(data().full(), step=0)
    untrained = BACKEND.build(pendulum.spec)
    with pytest.raises(ValueError, match=r"piecewise_f, which has done no step.*joint"):
        SMALL.fit(pendulum, backend=untrained, steps=1, **QUIET)


def test_a_q_without_a_gradient_in_the_actions_is_refused() -> None:
    factor = torch.ones((), requires_grad=True)

    def blind(observations: Tensor, actions: Tensor) -> Tensor:
        return factor * observations[:, 0][None]

    @torch.no_grad()
    def closed(observations: Tensor, actions: Tensor) -> Tensor:
        return quadratic(observations, actions)

    for q in (blind, closed):
        with pytest.raises(ValueError, match="expected a Q with a gradient in the actions"):
            EXACT.fit(data(), backend=given(q), steps=1, **QUIET)


def test_a_q_of_another_shape_is_refused() -> None:
    def tall(observations: Tensor, actions: Tensor) -> Tensor:
        return actions  # (B, 1) for (B,)

    with pytest.raises(ValueError, match=r"of shape \(M, 256\), got \(256, 1\)"):
        EXACT.fit(data(), backend=given(tall), steps=1, **QUIET)


def test_a_bound_over_members_needs_two_of_them_before_training(pendulum: Transitions) -> None:
    config = SMALL.model_copy(update={"reduction": LowerBound()})
    single = BACKEND.model_copy(update={"critic_members": 1}).build(pendulum.spec)
    with pytest.raises(ValueError, match=r"at least 2, got critic_members = 1.*pessimism = 0"):
        config.check(None, single)
    config.check(None, BACKEND.build(pendulum.spec))


# -- the policy


def test_a_policy_of_one_action(tmp_path: Path) -> None:
    """The action of the actor, whatever the seed, in the units of the environment; saved too."""
    part = trained(EXACT, quadratic, 20)
    policy = part.policy(q=quadratic)
    expected = part.model.actions(STATES).detach()
    torch.testing.assert_close(policy.act(STATES, seed=3), expected)
    torch.testing.assert_close(policy.act(STATES, deterministic=True), expected)
    policy.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_policy(tmp_path, device="cpu")  # one candidate needs no Q
    torch.testing.assert_close(loaded.act(STATES), expected)


def test_several_candidates_would_be_the_same_and_are_refused() -> None:
    policy = trained(EXACT, quadratic, 1).policy(q=quadratic)
    words = r"the sampler 'actor' gives one action per state.*use candidates=1.*got 4 and 1"
    with pytest.raises(ValueError, match=words):
        policy.with_settings(candidates=4)
    with pytest.raises(ValueError, match=r"noise_scale=1, got 1 and 0\.5"):
        policy.with_settings(noise_scale=0.5)
    sampler = Actor(network=NETWORK).build(data().spec)
    with pytest.raises(ValueError, match=words):
        make_policy(data().spec, sampler, candidates=4, selection=Selection(), q=quadratic)
    with pytest.raises(ValueError, match="candidates"):
        PolicyGradient.model_validate({"candidates": 4})
