"""Backends on finite problems whose exact answers are computed apart: fixed points by value
iteration, duals by L-BFGS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tabular import (
    KINDS,
    RAW,
    TABLE,
    Problem,
    Solution,
    divergence,
    dual,
    error,
    quick,
    random_problem,
    semi_gradient,
    stacked,
    train,
)

import ddice
from ddice.dice_backends import (
    AdvantageHead,
    BackendConfig,
    CriticEnsemble,
    DeterministicDice,
    FDice,
    OptiDice,
    PiecewiseF,
)
from ddice.diffusion.networks import MLP

HEAD = AdvantageHead(network=TABLE, members=1, clip_deviations=1000)
CLOSE = (
    2e-3  # of the largest number; float32 alone would allow 1e-6, the steps below reach about 1e-3
)
TEMPERATURE, DISCOUNT = 0.7, 0.9
COMMON = {"value": TABLE, "encoder": RAW, "temperature": TEMPERATURE, "discount": DISCOUNT}
PAIR = {**COMMON, "critic": TABLE, "optimizer": quick(0.1), "polyak": 0.3}
TRUE = {**COMMON, "advantage": HEAD, "optimizer": quick(0.05)}  # OptiDICE has no averaged copy
ALONE = {**TRUE, "polyak": 0.3}

pytestmark = pytest.mark.oracle


class Trained:
    """A backend trained on several problems at once, one per seed, each held whole by its batch."""

    def __init__(self, config: BackendConfig, problems: Sequence[Problem], steps: int):
        self.problems, self.batch = problems, stacked(problems)
        self.backend = config.build(problems[0].data().spec, seed=tuple(range(len(problems))))
        self.metrics = train(self.backend, self.batch, steps)
        self.ratios = self.backend.ratio(self.batch)

    def assert_reaches(self, solutions: Sequence[Solution]) -> None:
        """Ratios, and V and Q in the units in which they are unique."""
        states, (observations, actions) = (
            torch.eye(self.problems[0].states),
            self.problems[0].query(),
        )
        values = self.backend.value(states.expand(len(self.problems), -1, -1))
        q = self.backend.q(
            observations.expand(len(self.problems), -1, -1),
            actions.expand(len(self.problems), -1, -1),
        ).mean(1)
        for i, (problem, solution) in enumerate(zip(self.problems, solutions, strict=True)):
            shift = solution.lam / (1 - DISCOUNT)
            assert error(self.ratios[i], solution.w[problem.s, problem.a]) < CLOSE
            assert error(values[i], solution.v + shift) < CLOSE
            assert error(q[i], solution.q.reshape(-1) + DISCOUNT * shift) < CLOSE


def fixed_points(problems: Sequence[Problem], kind: str, mean_ratio: float = 1.0) -> list[Solution]:
    return [semi_gradient(problem, kind, TEMPERATURE, DISCOUNT, mean_ratio) for problem in problems]


def duals(problems: Sequence[Problem], kind: str) -> list[Solution]:
    return [dual(problem, kind, TEMPERATURE, DISCOUNT) for problem in problems]


def ending(share: float = 0.5, **sizes: int) -> list[Problem]:
    """Two problems, of which the second has terminations."""
    return [random_problem(1, **sizes), random_problem(2, terminate=share, **sizes)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_pair_reaches_its_fixed_point(kind: str) -> None:
    """Stochastic dynamics: w sees E[r + gamma V(s')], not the sample."""
    trained = Trained(FDice(divergence=kind, **PAIR), ending(), 700)
    trained.assert_reaches(fixed_points(trained.problems, kind))
    np.testing.assert_allclose(trained.metrics["mean_ratio"], 1, atol=1e-3)


def test_the_default_backend_on_a_larger_problem() -> None:
    trained = Trained(PiecewiseF(**PAIR), ending(states=15, actions=4), 1000)
    trained.assert_reaches(fixed_points(trained.problems, "piecewise"))


def test_the_printed_equation_scales_ratios_and_lifts_values() -> None:
    """Coefficient 1 - gamma on V: mean ratio 1 - gamma, and values about -alpha log(1 - gamma) /
    (1 - gamma) higher.
    """
    with pytest.warns(UserWarning, match=r"mean ratio of 0\.1"):
        trained = Trained(
            PiecewiseF(value_weight=1 - COMMON["discount"], **{**PAIR, "optimizer": quick(0.2)}),
            ending(0.0),
            1500,
        )
    solutions = fixed_points(trained.problems, "piecewise", 1 - DISCOUNT)
    trained.assert_reaches(solutions)
    np.testing.assert_allclose(trained.metrics["mean_ratio_expected"], 0.1, rtol=1e-5)
    lifted = solutions[0].v - fixed_points(trained.problems, "piecewise")[0].v
    assert lifted.mean() == pytest.approx(
        -TEMPERATURE * np.log(1 - DISCOUNT) / (1 - DISCOUNT), rel=0.3
    )


@pytest.mark.parametrize(
    "selector", [CriticEnsemble(members=2), HEAD], ids=lambda selector: selector.kind
)
def test_every_selector_learns_the_same_q(selector: Any) -> None:
    trained = Trained(PiecewiseF(selector=selector, **PAIR), ending(), 700)
    trained.assert_reaches(fixed_points(trained.problems, "piecewise"))


@pytest.mark.parametrize("kind", ["piecewise", "pearson"])
def test_deterministic_dynamics_need_no_critic(kind: str) -> None:
    trained = Trained(
        DeterministicDice(divergence=kind, **{**ALONE, "optimizer": quick(0.1)}),
        ending(branches=1),
        700,
    )
    trained.assert_reaches(fixed_points(trained.problems, kind))


def test_in_stochastic_dynamics_a_value_alone_takes_luck_for_choice() -> None:
    trained = Trained(DeterministicDice(**{**ALONE, "optimizer": quick(0.1)}), ending(), 700)
    outcomes = [problem.by_outcome() for problem in trained.problems]
    for ratios, problem, lucky in zip(
        trained.ratios, outcomes, fixed_points(outcomes, "piecewise"), strict=True
    ):
        assert error(ratios, lucky.w[problem.s, problem.a]) < CLOSE
    right = fixed_points(trained.problems, "piecewise")[0]
    assert error(trained.ratios[0], right.w[trained.problems[0].s, trained.problems[0].a]) > 0.1


def test_the_oracle_of_the_fixed_point_is_right() -> None:
    """It satisfies its two equations, which for KL have a closed form: V = alpha log E[e^{Q /
    alpha}].
    """
    problem = random_problem(1, terminate=0.5)
    solution = semi_gradient(problem, "kl", 0.5, 0.9)
    closed = 0.5 * np.log((problem.behaviour * np.exp(solution.q / 0.5)).sum(1))
    np.testing.assert_allclose(solution.v, closed, rtol=1e-9)
    np.testing.assert_allclose(
        solution.q,
        problem.expectation(problem.r + 0.9 * ~problem.d * solution.v[problem.following]),
        rtol=1e-9,
    )


@pytest.mark.parametrize("kind", ["soft_chi2", "half_pearson", "kl"])
def test_the_oracle_of_the_dual_is_right(kind: str) -> None:
    """Its ratios are a flow, d* = (1 - gamma) mu0 + gamma P d*, and the primal E[w r] - alpha
    E[f(w)] equals the minimum of the dual.
    """
    problem = random_problem(6)
    solution = dual(problem, kind, TEMPERATURE, DISCOUNT)
    w = solution.w[problem.s, problem.a]
    leaving, arriving = (
        np.bincount(index, problem.p * w, problem.states)
        for index in (problem.s, problem.following)
    )
    np.testing.assert_allclose(
        leaving, (1 - DISCOUNT) * problem.mu0 + DISCOUNT * arriving, atol=1e-6
    )
    primal = (problem.p * (w * problem.r - TEMPERATURE * divergence(kind, w))).sum()
    assert primal == pytest.approx(solution.minimum, abs=1e-6)


@pytest.mark.gate
@pytest.mark.parametrize("kind", ["soft_chi2", "kl", "piecewise"])
def test_optidice_reaches_the_exact_dual(kind: str) -> None:
    trained = Trained(
        OptiDice(divergence=kind, rewards=(), **TRUE), ending(), 2200 if kind == "kl" else 1500
    )
    trained.assert_reaches(duals(trained.problems, kind))
    np.testing.assert_allclose(
        trained.metrics["mean_ratio"], trained.metrics["mean_ratio_expected"], atol=1e-3
    )
    rows = (trained.batch.weights * trained.ratios).sum(-1) / trained.batch.weights.sum(-1)
    np.testing.assert_allclose(rows[0], 1, atol=1e-3)
    assert abs(rows[1] - 1) > 0.02  # the loops of the absorbing state belong to the mean


@pytest.mark.gate
def test_optidice_with_sparse_ratios() -> None:
    trained = Trained(OptiDice(divergence="half_pearson", rewards=(), **TRUE), ending(), 2500)
    for i, (problem, solution) in enumerate(
        zip(trained.problems, duals(trained.problems, "half_pearson"), strict=True)
    ):
        expected = solution.w[problem.s, problem.a]
        assert (expected == 0).any()
        assert error(trained.ratios[i], expected) < CLOSE
        assert torch.equal(
            trained.backend.log_ratio(trained.batch)[i] == -torch.inf,
            torch.from_numpy(expected == 0),
        )


def test_optidice_on_samples_is_exact_in_deterministic_dynamics() -> None:
    trained = Trained(OptiDice(expectation="sample", rewards=(), **TRUE), ending(branches=1), 1500)
    solutions = duals(trained.problems, "soft_chi2")
    trained.assert_reaches(solutions)
    np.testing.assert_allclose(
        trained.metrics["v_loss"], [solution.minimum for solution in solutions], atol=1e-4
    )


def test_optidice_on_samples_takes_luck_for_choice_elsewhere() -> None:
    trained = Trained(OptiDice(expectation="sample", rewards=(), **TRUE), ending(), 1500)
    outcomes = [problem.by_outcome() for problem in trained.problems]
    for ratios, problem, lucky in zip(
        trained.ratios, outcomes, duals(outcomes, "soft_chi2"), strict=True
    ):
        assert error(ratios, lucky.w[problem.s, problem.a]) < CLOSE


def test_the_absorbing_state_pays_what_a_reward_of_zero_becomes() -> None:
    problem = random_problem(9, terminate=0.5)
    trained = Trained(
        OptiDice(rewards=("standardize", {"kind": "scale", "factor": 2}), **TRUE), [problem], 1500
    )
    mean, std = problem.r.mean(), problem.r.std()
    assert abs(mean) > 0.02
    transformed = dataclasses.replace(problem, r=2 * (problem.r - mean) / std)
    trained.assert_reaches(
        [dual(transformed, "soft_chi2", TEMPERATURE, DISCOUNT, absorbing_reward=-2 * mean / std)]
    )


def test_values_shift_against_lambda() -> None:
    """(V + c, v_abs + c, lam - (1 - gamma) c), and with them e - (1 - gamma) c, change nothing
    of what is reported.
    """
    trained = Trained(OptiDice(rewards=(), **TRUE), ending(), 100)
    backend, states, query = (
        trained.backend,
        torch.eye(6).expand(2, -1, -1),
        [x.expand(2, -1, -1) for x in trained.problems[0].query()],
    )
    before = trained.ratios, backend.value(states), backend.q(*query)
    with torch.no_grad():
        backend.value_network.linear_0_bias += 3
        backend.absorbing_value += 3
        backend.lam -= 3 * (1 - DISCOUNT)
        backend.head.linear_0_bias -= 3 * (1 - DISCOUNT)
    for old, new in zip(
        before,
        (backend.ratio(trained.batch), backend.value(states), backend.q(*query)),
        strict=True,
    ):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)


def test_truncation_keeps_the_bootstrap_and_termination_cuts_it() -> None:
    """One action per state, so V = Q: a chain 0 -> 1 -> 2 cut by time in row 1, and the same
    states ended by the environment in row 4.
    """
    states = np.eye(6, dtype=np.float32)
    data = ddice.load_dataset(
        {
            "observations": states[[0, 1, 2, 3, 4]],
            "next_observations": states[[1, 2, 2, 4, 5]],
            "actions": np.zeros((5, 1), np.float32),
            "rewards": np.array([1.0, 2.0, 0.5, 1.0, 2.0]),
            "terminations": np.array([False, False, False, False, True]),
            "truncations": np.array([False, True, True, False, False]),
        },
        action_bounds=(-1, 1),
    )
    expected = np.zeros(5)
    expected[2] = 0.5 / (1 - DISCOUNT)
    expected[1] = 2 + DISCOUNT * expected[2]
    expected[0] = 1 + DISCOUNT * expected[1]
    expected[4], expected[3] = 2, 1 + DISCOUNT * 2
    for config in (PiecewiseF(**PAIR), DeterministicDice(**{**ALONE, "optimizer": quick(0.1)})):
        backend = config.build(data.spec)
        train(backend, data.full(), 700)
        assert error(backend.value(torch.eye(6)[:5]), expected) < CLOSE


@pytest.mark.slow
def test_deep_networks_reach_the_fixed_point_too() -> None:
    """The networks of the defaults, in random batches instead of the exact one, with equal
    probabilities.
    """
    problem = random_problem(12, branches=1)
    count = len(problem.s)
    problem = dataclasses.replace(problem, p=np.full(count, 1 / count))
    small = MLP(hidden=(64, 64))
    config = PiecewiseF(
        critic=small,
        value=small,
        temperature=TEMPERATURE,
        discount=DISCOUNT,
        polyak=0.02,
        batch_size=256,
        optimizer=quick(1e-3),
    )
    backend = config.fit(problem.data(), steps=4000, progress=False)
    solution = semi_gradient(problem, "piecewise", TEMPERATURE, DISCOUNT)
    assert error(backend.ratio(problem.data().full()), solution.w[problem.s, problem.a]) < 0.05
