"""Off-policy evaluation against exact values of finite problems, and the signs by which it tells
that it fails.
"""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddice.dice_backends import GivenRatio, PiecewiseF
from ddice.diffusion.networks import MLP, ResidualScore
from ddice.diffusion.prior import DiffusionPrior
from ddice.extractors import SelectOnly
from ddice.ope import (
    ActionCache,
    FittedQEvaluation,
    estimate_value,
    rank_correlation,
    sample_actions,
)
from ddice.testing import (
    RAW,
    TABLE,
    Problem,
    dual,
    error,
    exact_actions,
    policy_of,
    policy_q,
    policy_value,
    quick,
    random_problem,
    semi_gradient,
    state_action_ratio,
    table_settings,
    train,
)
from ddice.testing.example import example_data

DISCOUNT = 0.9
PROBLEM = random_problem(1, states=10, actions=3, terminate=0.3)
OPTIMUM = dual(PROBLEM, "soft_chi2", 0.7, DISCOUNT)
POLICY = policy_of(PROBLEM, OPTIMUM.w)
TRUTH = policy_value(PROBLEM, POLICY, DISCOUNT)
FITTED = FittedQEvaluation(
    discount=DISCOUNT, critic=TABLE, encoder=RAW, optimizer=quick(0.1), polyak=0.3, members=2
)


class Ratios:
    """State-action ratios w (S, A) with values v (S,) of one's own, as a backend."""

    ratio_kind, starts_from, has_value = "state-action", "initial", True
    seed, discount, device = 0, None, torch.device("cpu")

    def __init__(self, problem: Problem, w: np.ndarray, v: np.ndarray):
        self.spec = problem.data().spec
        self._log_w, self._v = torch.from_numpy(w.reshape(-1)).log(), torch.from_numpy(v)

    def log_ratio(self, batch):
        return self._log_w[batch.actions.argmax(-1)]

    def rewards(self, raw):
        return raw

    def value(self, observations):
        return self._v[observations.argmax(-1)]


def values_of(policy: np.ndarray) -> np.ndarray:
    return (policy * policy_q(PROBLEM, policy, DISCOUNT)).sum(1)


@pytest.mark.oracle
@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_exact_ratios_give_the_value_of_the_optimum(scale: float) -> None:
    """Whatever their scale; the flow residual vanishes."""
    data = PROBLEM.data()
    ratios = GivenRatio(
        source=scale * OPTIMUM.w[PROBLEM.s, PROBLEM.a], ratio_kind="state-action"
    ).build(data.spec)
    estimate = estimate_value(ratios, data, discount=DISCOUNT, repetitions=50)
    assert estimate.self_normalised.value == pytest.approx(TRUTH, rel=1e-4)
    assert estimate.flow_residual < 1e-3
    assert estimate.doubly_robust is None
    assert estimate.valid
    assert estimate.self_normalised.low < TRUTH < estimate.self_normalised.high
    assert "value of the regularised optimum" in str(estimate)


@pytest.mark.oracle
def test_the_doubly_robust_estimate_needs_one_of_its_two_parts() -> None:
    """Exact ratios with random values, and exact values with a wrong state factor; with both
    wrong it is wrong too.
    """
    rng = np.random.default_rng(0)
    wrong_w, wrong_v = OPTIMUM.w * rng.uniform(0.2, 3, 10)[:, None], 5 * rng.normal(size=10)
    for w, v, right, plain in (
        (OPTIMUM.w, wrong_v, True, True),
        (wrong_w, values_of(POLICY), True, False),
        (wrong_w, wrong_v, False, False),
    ):
        estimate = estimate_value(
            Ratios(PROBLEM, w, v), PROBLEM.data(), discount=DISCOUNT, repetitions=5
        )
        assert (abs(estimate.doubly_robust.value - TRUTH) < 1e-3) == right
        assert (abs(estimate.self_normalised.value - TRUTH) < 1e-3) == plain
        assert estimate.valid == plain  # the flow residual sees the wrong state factor


@pytest.mark.oracle
def test_action_ratios_are_refused_and_would_be_wrong() -> None:
    action = semi_gradient(PROBLEM, "piecewise", 0.7, DISCOUNT)
    data = PROBLEM.data()
    backend = PiecewiseF(**table_settings(temperature=0.7, discount=DISCOUNT)).build(data.spec)
    with pytest.raises(ValueError, match=r"got 'action' ratios.*StateCorrection"):
        estimate_value(backend, data)
    truth = policy_value(PROBLEM, policy_of(PROBLEM, action.w), DISCOUNT)
    taken_for_granted = estimate_value(
        Ratios(PROBLEM, action.w, action.v), data, discount=DISCOUNT, repetitions=5
    )
    assert abs(taken_for_granted.self_normalised.value - truth) > 0.05 * abs(truth)
    assert not taken_for_granted.valid
    assert "no occupancy from the start" in taken_for_granted.reasons[0]
    right = state_action_ratio(PROBLEM, policy_of(PROBLEM, action.w), DISCOUNT)
    corrected = estimate_value(
        Ratios(PROBLEM, right, action.v), data, discount=DISCOUNT, repetitions=5
    )
    assert corrected.doubly_robust.value == pytest.approx(truth, rel=1e-4)


@pytest.mark.oracle
def test_transformed_rewards_change_the_values_but_not_the_estimate() -> None:
    """V in units ten times as large, with a backend that says so: the slope brings it back."""
    wrong_w = OPTIMUM.w * np.random.default_rng(0).uniform(0.2, 3, 10)[:, None]
    scaled = Ratios(PROBLEM, wrong_w, 10 * values_of(POLICY))
    scaled.rewards = lambda r: 10 * r
    estimate = estimate_value(scaled, PROBLEM.data(), discount=DISCOUNT, repetitions=5)
    assert estimate.doubly_robust.value == pytest.approx(TRUTH, abs=1e-3)


def test_a_ratio_on_one_episode_is_flagged() -> None:
    """All weight on the luckiest of 60 episodes: a high value, no effective sample size, and the
    flag says so.
    """
    data = PROBLEM.episodes(60, 15, seed=0)
    returns = data.returns_to_go(data.rewards, DISCOUNT).numpy()
    first = np.flatnonzero(np.append(True, np.diff(data.episode.numpy()) > 0))
    lucky = data.episode.numpy() == np.argmax(returns[first])
    step = np.arange(len(data)) - first[data.episode.numpy()]
    peaked = GivenRatio(source=lucky * DISCOUNT**step, ratio_kind="state-action").build(data.spec)
    estimate = estimate_value(peaked, data, discount=DISCOUNT, repetitions=200)
    assert estimate.self_normalised.value > policy_value(PROBLEM, PROBLEM.behaviour, DISCOUNT) + 1
    assert estimate.effective_units == pytest.approx(1)
    assert any("effective episodes, fewer than 20" in reason for reason in estimate.reasons)
    flat = estimate_value(
        GivenRatio(source=DISCOUNT**step, ratio_kind="state-action").build(data.spec),
        data,
        discount=DISCOUNT,
        repetitions=200,
    )
    assert flat.effective_units > 20
    assert flat.flow_residual < 0.25  # the discounted behaviour, cut after 15 steps
    assert flat.valid


def test_the_interval_is_that_of_episodes() -> None:
    """The mean return of the behaviour over 200 episodes: the interval is as wide as 2 x 1.96
    standard errors of episodes, not of rows.
    """
    data = PROBLEM.episodes(200, 15, seed=1)
    episode = data.episode.numpy()
    first = np.flatnonzero(np.append(True, np.diff(episode) > 0))
    ratios = GivenRatio(
        source=DISCOUNT ** (np.arange(len(data)) - first[episode]), ratio_kind="state-action"
    ).build(data.spec)
    estimate = estimate_value(ratios, data, discount=DISCOUNT, repetitions=500).self_normalised
    weights, rewards = ratios.ratio(data.full()).numpy(), data.rewards.numpy()
    stays = 1 - DISCOUNT * ~data.terminations.numpy()
    top, bottom = np.bincount(episode, weights * rewards), np.bincount(episode, weights * stays)
    spread = np.std((top - estimate.value * bottom) / bottom.mean()) / np.sqrt(
        200
    )  # of a quotient of means, by linearisation
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_what_is_missing_is_said() -> None:
    data = PROBLEM.data()
    given = GivenRatio(source=np.ones(len(PROBLEM.s)), ratio_kind="state-action").build(data.spec)
    with pytest.raises(ValueError, match="no discount of its own"):
        estimate_value(given, data)
    with pytest.raises(ValueError, match="0 < level < 1"):
        estimate_value(given, data, discount=DISCOUNT, level=1.5)
    with pytest.raises(ValueError, match="same length"):
        rank_correlation([1, 2], [1])


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(3**0.5 / 2)


@pytest.mark.oracle
def test_fitted_q_is_exact_on_tables() -> None:
    """Q^pi of every pair and the value from the start, with all actions in place of samples;
    terminations end it.
    """
    data = PROBLEM.data()
    fitted = FITTED.build(data.spec)
    fitted.follow(exact_actions(PROBLEM, POLICY, data), data)
    train(fitted, data.full(), 500)
    for member in fitted.q(*PROBLEM.query()):
        assert error(member, policy_q(PROBLEM, POLICY, DISCOUNT).reshape(-1)) < 2e-3
    assert fitted.estimate(data, repetitions=20).value == pytest.approx(TRUTH, rel=2e-3)
    assert fitted.spread(data) < 2e-3


@pytest.mark.oracle
def test_fitted_q_with_sampled_actions() -> None:
    """64 samples per next state, each state's drawn anew in every row that leads there."""
    data, table = PROBLEM.data(), torch.from_numpy(POLICY).float()

    def act(observations: torch.Tensor, seed: int) -> torch.Tensor:
        states = observations.argmax(-1)
        chosen = torch.multinomial(
            table[states], 1, generator=torch.Generator().manual_seed(seed)
        ).squeeze(1)
        return torch.eye(30)[states * 3 + chosen]

    fitted = FITTED.build(data.spec)
    fitted.follow(sample_actions(act, data, samples=64), data)
    train(fitted, data.full(), 500)
    assert fitted.estimate(data, repetitions=20).value == pytest.approx(TRUTH, rel=0.05)


def test_fitted_q_fit_takes_a_policy_and_its_candidates() -> None:
    """A policy that selects by Q: its cached actions score higher under that Q with more
    candidates, and repeat with the seed.
    """
    data = PROBLEM.episodes(20, 10, seed=0)
    small = DiffusionPrior(network=ResidualScore(width=8, blocks=1)).fit(
        data, steps=2, progress=False, device="cpu"
    )
    given = GivenRatio(
        source=np.ones(data.spec.source_rows), q=lambda observations, actions: actions[:, 0][None]
    ).build(data.spec)
    scores = []
    for candidates in (1, 8):
        policy = SelectOnly(candidates=candidates).fit(
            data, prior=small, backend=given, progress=False, device="cpu"
        )
        cache = sample_actions(policy, data, samples=2, seed=3, batch_size=64)
        assert cache.next_actions.shape == (len(data), 2, 30)
        assert torch.equal(
            cache.next_actions,
            sample_actions(policy, data, samples=2, seed=3, batch_size=64).next_actions,
        )
        assert not torch.equal(cache.next_actions[:, 0], cache.next_actions[:, 1])
        assert cache.next_actions.abs().max() <= 1
        scores.append(float(cache.next_actions[..., 0].mean()))
    assert scores[1] > scores[0]
    fitted = FittedQEvaluation(critic=MLP(hidden=(8,)), samples=2, batch_size=16).fit(
        data, policy=policy, steps=2, progress=False, device="cpu"
    )
    estimate = fitted.estimate(data, repetitions=20)
    assert estimate.low <= estimate.value <= estimate.high
    assert fitted.spread(data) > 0


def test_fitted_q_refusals() -> None:
    data = PROBLEM.data()
    fitted = FITTED.build(data.spec)
    with pytest.raises(ValueError, match="follow"):
        fitted.update(data.full(), step=0)
    with pytest.raises(ValueError, match="expected the policy to return actions of shape"):
        sample_actions(lambda observations, seed: observations, data)
    with pytest.raises(ValueError, match="belong to other data"):
        fitted.follow(exact_actions(PROBLEM, POLICY, PROBLEM.episodes(2, 3, seed=0)), data)
    with pytest.raises(ValueError, match="expected the data whose actions are kept"):
        fitted.estimate(data)


BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "ope_tabular.py"


def test_the_best_of_several_draws_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4 in the order of q: the best of 2 is the last with 1 - (3/4)^2,
    the first with (1/2)^2.
    """
    best_of = runpy.run_path(str(BENCHMARK))["best_of"]
    got = best_of(np.array([[0.25, 0.5, 0.25]]), np.array([[2.0, 1.0, 3.0]]), 2)
    np.testing.assert_allclose(got, [[9 / 16 - 1 / 4, 1 / 4, 1 - 9 / 16]])


@pytest.mark.slow
@pytest.mark.oracle
def test_estimates_rank_with_many_episodes_and_fail_with_few() -> None:
    """On two problems; with 5 episodes at least one method misranks, and the flag is raised
    everywhere.
    """
    table = runpy.run_path(str(BENCHMARK))["table"]
    rows, rankings = table(1, episodes=100)
    assert min(ranking.mean for ranking in rankings) > 0.7
    few_rows, few = table(1, episodes=5)
    assert min(ranking.worst for ranking in few) < 0.7
    assert not any(row.valid for row in few_rows if row.choice == "temperature")
    assert any(row.valid for row in rows if row.choice == "temperature")


def test_fitted_q_is_named_by_all_that_it_reads_in_training() -> None:
    """Other actions or other weights at the next states make another part; other first actions,
    which only the estimate reads, do not.
    """
    data = example_data()
    prior = DiffusionPrior(network=ResidualScore(width=8, blocks=1)).build(data.spec)
    policy = SelectOnly(candidates=1).build(data.spec, prior=prior).policy()
    cache = sample_actions(policy, data, samples=2)

    def named(changed: ActionCache) -> str:
        part = FittedQEvaluation(critic=MLP(hidden=(8,))).build(data.spec)
        part.follow(changed, data)
        return part.identity(data)

    same = named(cache)
    assert named(replace(cache, next_weights=cache.next_weights.flip(1) * 0.5)) != same
    assert named(replace(cache, next_actions=-cache.next_actions)) != same
    assert named(replace(cache, initial_actions=-cache.initial_actions)) == same
