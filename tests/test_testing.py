"""The public oracles themselves, and every backend at its own fixed point on 50 states x 5
actions.
"""

from __future__ import annotations

import numpy as np
import pytest
from tabular import KINDS, divergence

from ddice.dice_backends import DeterministicDice, FDice, OptiDice, OrthogonalDice, PiecewiseF
from ddice.diffusion.networks import MLP
from ddice.testing import (
    TABLE,
    ContinuousBandit,
    Problem,
    difference_table,
    differences,
    dual,
    grid_world,
    occupancy,
    orthogonal_dual,
    policy_of,
    policy_q,
    policy_value,
    random_problem,
    relative_error,
    semi_gradient,
    state_action_ratio,
    table_settings,
    train,
    train_orthogonal_limit,
)
from ddice.testing.exact import GRADIENT_TOLERANCE

TEMPERATURE, DISCOUNT = 0.7, 0.9
TARGET = 0.02  # median relative error of the ratio
PAIR = table_settings(temperature=TEMPERATURE, discount=DISCOUNT)
ALONE = table_settings(temperature=TEMPERATURE, discount=DISCOUNT, pair=False)
SMOOTH = table_settings(temperature=TEMPERATURE, discount=DISCOUNT, pair=False, learning_rate=0.05)
TRUE = {name: value for name, value in SMOOTH.items() if name != "polyak"}  # it has no average

pytestmark = pytest.mark.oracle


def large(**changes) -> Problem:
    return random_problem(1, states=50, actions=5, terminate=0.3, **changes)


OTHERS = [
    pytest.param(FDice(divergence=kind, **PAIR), marks=pytest.mark.slow, id=kind) for kind in KINDS
]


@pytest.mark.parametrize("config", [pytest.param(PiecewiseF(**PAIR), id="default"), *OTHERS])
def test_the_pair_on_fifty_states(config) -> None:
    problem = large()
    batch, backend = problem.data().full(), config.build(problem.data().spec)
    train(backend, batch, 500)
    expected = semi_gradient(problem, config.f.kind, TEMPERATURE, DISCOUNT).w
    assert relative_error(backend.ratio(batch), expected[problem.s, problem.a]) < TARGET
    means = np.bincount(problem.s, problem.p * backend.ratio(batch).numpy()) / np.bincount(
        problem.s, problem.p
    )
    np.testing.assert_allclose(means, 1, atol=TARGET)


@pytest.mark.gate
@pytest.mark.parametrize(
    "kind",
    [
        "soft_chi2",
        pytest.param("kl", marks=pytest.mark.slow),
        pytest.param("half_pearson", marks=pytest.mark.slow),
    ],
)
def test_optidice_on_fifty_states(kind: str) -> None:
    problem = large()
    batch = problem.data().full()
    backend = OptiDice(divergence=kind, rewards=(), **TRUE).build(problem.data().spec)
    train(backend, batch, 1500 if kind == "soft_chi2" else 4000)
    solution = dual(problem, kind, TEMPERATURE, DISCOUNT)
    assert relative_error(backend.ratio(batch), solution.w[problem.s, problem.a]) < TARGET


def test_a_value_alone_on_fifty_states() -> None:
    problem = large(branches=1)
    batch, backend = problem.data().full(), DeterministicDice(**ALONE).build(problem.data().spec)
    train(backend, batch, 500)
    expected = semi_gradient(problem, "piecewise", TEMPERATURE, DISCOUNT).w
    assert relative_error(backend.ratio(batch), expected[problem.s, problem.a]) < TARGET


def test_the_orthogonal_one_in_its_true_gradient_limit_on_fifty_states() -> None:
    problem = large(branches=1, loops=False)
    got = train_orthogonal_limit(OrthogonalDice(divergence="soft_chi2", **SMOOTH), problem, 400)
    expected = orthogonal_dual(problem, "soft_chi2", TEMPERATURE, DISCOUNT, 0.6).w
    assert relative_error(got, expected[problem.s, problem.a]) < TARGET


def test_its_limit_needs_problems_without_loops() -> None:
    with pytest.raises(ValueError, match="without transitions of a state to itself"):
        train_orthogonal_limit(OrthogonalDice(value=TABLE), grid_world(3, slip=0), 1)


@pytest.mark.parametrize(
    "problem", [large(), grid_world(4), random_problem(3)], ids=["terminations", "grid", "endless"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_duals_close_their_gap(kind: str, problem: Problem) -> None:
    """The primal value of w equals the dual's minimum, and w is a flow: also with terminations,
    whose absorbing state belongs to both.
    """
    solution = dual(problem, kind, TEMPERATURE, DISCOUNT)
    assert abs(solution.gap) < 1e-6
    assert solution.residual < GRADIENT_TOLERANCE
    ends = problem.p[problem.d].sum()
    table = problem.pairs.reshape(problem.states, problem.actions) * solution.w / (1 + ends)
    policy = policy_of(problem, solution.w)
    np.testing.assert_allclose(
        table, occupancy(problem, policy, DISCOUNT)[:, None] * policy, atol=1e-5
    )


def test_the_regularised_optimum_is_optimal() -> None:
    """No other policy has a larger regularised value than the dual's: checked on 200 random
    ones.
    """
    problem, rng = random_problem(3), np.random.default_rng(0)
    best = dual(problem, "soft_chi2", TEMPERATURE, DISCOUNT)
    for _ in range(200):
        w = state_action_ratio(problem, rng.dirichlet(np.ones(3), 6), DISCOUNT)[
            problem.s, problem.a
        ]
        assert (
            problem.p * (w * problem.r - TEMPERATURE * divergence("soft_chi2", w))
        ).sum() < best.minimum + 1e-9


def test_the_orthogonal_dual_closes_its_gap() -> None:
    solution = orthogonal_dual(large(branches=1), "soft_chi2", TEMPERATURE, DISCOUNT, 0.6)
    assert abs(solution.gap) < 1e-6
    assert solution.residual < GRADIENT_TOLERANCE


def test_occupancies_and_values_by_simulation_of_the_sum() -> None:
    """d and V against 400 terms of their series."""
    problem = large()
    policy = policy_of(problem, semi_gradient(problem, "kl", TEMPERATURE, DISCOUNT).w)
    state, total, value = problem.mu0.copy(), np.zeros(50), 0.0
    chance = problem.p / problem.pairs[problem.pair]
    for step in range(400):
        total += (1 - DISCOUNT) * DISCOUNT**step * state
        flow = state[problem.s] * policy[problem.s, problem.a] * chance
        value += DISCOUNT**step * (flow * problem.r).sum()
        state = np.bincount(problem.following, flow * ~problem.d, 50)
    np.testing.assert_allclose(occupancy(problem, policy, DISCOUNT), total, atol=1e-12)
    assert policy_value(problem, policy, DISCOUNT) == pytest.approx(value, abs=1e-10)
    w = state_action_ratio(problem, policy, DISCOUNT)[problem.s, problem.a]
    assert (problem.p * w * problem.r).sum() / (1 - DISCOUNT) == pytest.approx(value, abs=1e-10)


def test_the_grid_world_by_hand() -> None:
    """2 x 2 without slipping: from its three states the greedy way takes 2, 1 and 1 moves."""
    problem = grid_world(2, slip=0)
    assert (problem.states, problem.actions, len(problem.s)) == (3, 4, 12)
    best = np.zeros((3, 4))
    best[0, 1] = best[1, 1] = best[2, 3] = 1  # down, down, right
    q = policy_q(problem, best, 0.5)
    np.testing.assert_allclose((best * q).sum(1), [-0.1 + 0.5, 1, 1])
    assert q[0, 0] == pytest.approx(-0.1 + 0.5 * 0.4)  # against the wall
    assert grid_world(4).p.sum() == pytest.approx(1)


def test_sampled_episodes_follow_the_problem() -> None:
    problem = random_problem(3, terminate=0.5)
    data = problem.episodes(400, 20, seed=0)
    pairs = data.actions.argmax(-1).numpy()
    visited = np.bincount(pairs, minlength=18).reshape(6, 3)
    np.testing.assert_allclose(
        visited / visited.sum(1, keepdims=True), problem.behaviour, atol=0.08
    )
    assert data.spec.episodes == 400
    observed = problem.observed(data)
    np.testing.assert_allclose(observed.behaviour, visited / visited.sum(1, keepdims=True))
    np.testing.assert_allclose(
        observed.expectation(observed.r), problem.expectation(problem.r), atol=0.2
    )
    returns = data.returns_to_go(data.rewards, DISCOUNT)[
        np.append(True, np.diff(data.episode.numpy()) > 0)
    ]
    assert float(returns.mean()) == pytest.approx(
        policy_value(problem, problem.behaviour, DISCOUNT), abs=4 * float(returns.std()) / 20 + 0.15
    )


def test_the_continuous_bandit_in_closed_form() -> None:
    """Uniform actions and rewards 2 x a under KL: V = alpha log(sinh(c) / c), c = 2 x / alpha."""
    contexts = np.array([-1.0, 0.3, 0.8])
    c = 2 * contexts / 0.5
    bandit = ContinuousBandit()
    np.testing.assert_allclose(
        bandit.value("kl", contexts, 0.5), 0.5 * np.log(np.sinh(c) / c), atol=1e-6
    )
    w = bandit.ratio("kl", contexts, np.array([0.5, -0.2, 1.0]), 0.5)
    np.testing.assert_allclose(
        w, np.exp(c * np.array([0.5, -0.2, 1.0])) * c / np.sinh(c), rtol=1e-5
    )


def test_the_continuous_bandit_samples_what_it_says() -> None:
    """The mean ratio over its data is 1, and the deviation of its actions that of the density."""
    bandit = ContinuousBandit(reward=lambda x, a: -((a - x) ** 2), slope=3.0)
    data = bandit.data(20_000, seed=0)
    contexts, actions = (
        data.observations[:, 0].double().numpy(),
        data.actions[:, 0].double().numpy(),
    )
    grid = np.linspace(-1, 1, 4001)
    assert actions.std() == pytest.approx(
        np.sqrt((grid**2 * bandit.density(grid)).mean() * 2), rel=0.02
    )
    assert bandit.ratio("piecewise", contexts[:400], actions[:400], 0.3).mean() == pytest.approx(
        1, abs=0.1
    )


@pytest.mark.slow
def test_a_deep_pair_on_the_continuous_bandit() -> None:
    """Default networks narrowed to 64: the median relative error of the ratio, from samples."""
    bandit, small = ContinuousBandit(reward=lambda x, a: -((a - x / 2) ** 2)), MLP(hidden=(64, 64))
    data = bandit.data(20_000, seed=0)
    backend = PiecewiseF(critic=small, value=small, temperature=0.2, discount=0.0, polyak=0.05).fit(
        data, steps=3000, progress=False, device="cpu"
    )
    contexts, actions = (
        data.observations[:, 0].double().numpy(),
        data.actions[:, 0].double().numpy(),
    )
    expected = bandit.ratio("piecewise", contexts[:400], actions[:400], 0.2)
    assert relative_error(backend.ratio(data.full())[:400], expected) < 0.05


def test_the_backends_solve_different_problems() -> None:
    """The action ratio has mean 1 in every state and is no flow; corrected it is one of the same
    policy; OptiDICE's is that of another.
    """
    problem = large()
    action, corrected, optidice, orthogonal = differences(problem)
    assert action.state_mean_high - action.state_mean_low < 1e-9
    assert action.flow > 0.1
    assert max(corrected.flow, optidice.flow) < 1e-6
    assert corrected.policy_value == pytest.approx(action.policy_value)
    assert corrected.naive_value == pytest.approx(corrected.policy_value)
    assert abs(action.naive_value - action.policy_value) > 0.05 * abs(action.policy_value)
    assert optidice.naive_value == pytest.approx(optidice.policy_value, abs=1e-4)
    assert min(action.distance, corrected.distance, orthogonal.distance) > 0.1
    assert orthogonal.flow > 0.1  # it starts elsewhere
    assert len(difference_table([action, corrected, optidice, orthogonal]).splitlines()) == 6
