"""IQL against closed forms: expectiles of two numbers, the mean, exact fixed points, a cap counted
by hand.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tabular import RAW, TABLE, Problem, bandit, error, implicit, quick, random_problem, train

from ddice.dice_backends import Iql
from ddice.dice_backends.iql import expectile_loss
from ddice.testing import expectile, policy_q

pytestmark = pytest.mark.oracle

CLOSE = 2e-3  # of the largest number, as tests/test_tabular.py has it
TEMPERATURE, DISCOUNT = 0.7, 0.9
TABLES = {
    "value": TABLE,
    "critic": TABLE,
    "encoder": RAW,
    "optimizer": quick(0.1),
    "polyak": 0.3,
    "temperature": TEMPERATURE,
    "discount": DISCOUNT,
}


def test_the_expectile_loss_by_hand() -> None:
    """u = 2 counts 0.9 times, u = -1 counts 0.1 times; weights 1 and 3."""
    u, weights = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 3.0])
    loss = expectile_loss(u, 0.9, weights)
    assert loss.item() == pytest.approx((1 * 0.9 * 4 + 3 * 0.1 * 1) / 4)
    half = expectile_loss(u, 0.5, weights)
    assert half.item() == pytest.approx((4 + 3) / 8)


def two_arms(share: float) -> Problem:
    """One state, two actions that end: the second, of probability `share`, pays 1."""
    problem = bandit(0, states=1, actions=2)
    return dataclasses.replace(problem, r=np.array([0.0, 1.0]), p=np.array([1 - share, share]))


def of_two(tau: float, share: float) -> float:
    """tau p (1 - m) = (1 - tau) (1 - p) m, solved for the expectile m of 0 and 1."""
    return tau * share / (tau * share + (1 - tau) * (1 - share))


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("tau", [0.3, 0.5, 0.9])
def test_the_exact_expectile_of_two_numbers(tau: float, share: float) -> None:
    exact = expectile(np.array([[0.0, 1.0]]), np.array([[1 - share, share]]), tau)
    assert exact == pytest.approx(of_two(tau, share), abs=1e-12)


def test_the_expectile_of_two_numbers() -> None:
    problem, m = two_arms(0.2), of_two(0.9, 0.2)
    backend = Iql(expectile=0.9, **TABLES).build(problem.data().spec)
    train(backend, problem.data().full(), 300)
    assert backend.value(torch.ones(1, 1)).item() == pytest.approx(m, abs=1e-3)
    w = np.exp((np.array([0.0, 1.0]) - m) / TEMPERATURE)
    np.testing.assert_allclose(backend.ratio(problem.data().full()), w, rtol=3e-3)


def test_iql_reaches_its_fixed_point() -> None:
    """With a cap that acts on some ratios."""
    problem, tau = random_problem(2, terminate=0.5), 0.9
    config = Iql(expectile=tau, log_cap=0.2, **TABLES)
    solution = implicit(problem, tau, TEMPERATURE, DISCOUNT, 0.2)
    capped = solution.w == np.exp(0.2)
    assert 0 < capped.sum() < capped.size
    backend = config.build(problem.data().spec)
    metrics = train(backend, problem.data().full(), 700)
    observations, actions = problem.query()
    assert error(backend.value(torch.eye(problem.states)), solution.v) < CLOSE
    assert error(backend.q(observations, actions).mean(0), solution.q.reshape(-1)) < CLOSE
    ratio = backend.ratio(problem.data().full())
    assert error(ratio, solution.w[problem.s, problem.a]) < CLOSE
    expected = (problem.p * capped[problem.s, problem.a]).sum()
    assert metrics["cap_rate"] == pytest.approx(expected, abs=1e-5)


def test_at_one_half_values_are_those_of_the_behaviour() -> None:
    """SARSA: V = E[Q | s], and Q is that of the policy of the data."""
    problem = random_problem(3, terminate=0.5)
    q = policy_q(problem, problem.behaviour, DISCOUNT)
    assert implicit(problem, 0.5, 1.0, DISCOUNT, 1.0).q == pytest.approx(q, abs=1e-9)
    backend = Iql(expectile=0.5, **TABLES).build(problem.data().spec)
    train(backend, problem.data().full(), 700)
    assert error(backend.q(*problem.query()).mean(0), q.reshape(-1)) < CLOSE


def test_the_cap_by_hand() -> None:
    """Advantages 1, 0 and -2 at temperature 1/2: y = 2, 0 and -4, with the cap at e^1."""
    backend = Iql(temperature=0.5, log_cap=1.0).build(bandit(0).data().spec)
    advantage, weights = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([1.0, 2.0, 5.0])
    assert backend.log_ratio_of(advantage).tolist() == pytest.approx([1, 0, -4])
    assert backend.diagnostics(advantage, weights)["cap_rate"].item() == pytest.approx(1 / 8)
    published = Iql().build(bandit(0).data().spec)
    log_ratios = published.log_ratio_of(torch.tensor([1.0, 9.0]))
    assert log_ratios.tolist() == pytest.approx([3, math.log(100)])


def test_the_temperature_moves_ratios_and_not_values() -> None:
    """With a target it ends where the exact advantages have that effective sample size."""
    problem = random_problem(2, terminate=0.5)
    config = Iql(**{**TABLES, "temperature": "ess:0.5"})
    backend = config.build(problem.data().spec)
    metrics = train(backend, problem.data().full(), 700)
    solution = implicit(problem, 0.7, 1.0, DISCOUNT, 100.0)
    assert error(backend.value(torch.eye(problem.states)), solution.v) < CLOSE
    assert metrics["effective_sample_size"] == pytest.approx(0.5, abs=1e-2)
    w = np.exp((solution.q - solution.v[:, None]) / metrics["temperature"])[problem.s, problem.a]
    size = (problem.p * w).sum() ** 2 / (problem.p * w**2).sum()
    assert size == pytest.approx(0.5, abs=1e-2)


@pytest.mark.parametrize("field", [{"expectile": 0}, {"expectile": 1.0}, {"log_cap": -0.1}])
def test_a_senseless_field(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        Iql(**field)
