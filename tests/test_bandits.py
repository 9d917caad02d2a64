"""Bandits, discount 0: Q = r, and V is a root per state that bisection finds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tabular import (
    KINDS,
    RAW,
    TABLE,
    Array,
    Problem,
    bandit,
    bisect,
    error,
    quick,
    ratio,
    stacked,
    state_value,
    train,
)

from ddice.dice_backends import AdvantageHead, DeterministicDice, FDice, PiecewiseF

HEAD = AdvantageHead(network=TABLE, members=1, clip_deviations=1000)
TEMPERATURE = 0.6
COMMON = {
    "value": TABLE,
    "encoder": RAW,
    "optimizer": quick(0.1),
    "polyak": 0.3,
    "temperature": TEMPERATURE,
    "discount": 0.0,
}

pytestmark = pytest.mark.oracle


def root(problem: Problem, kind: str, temperature: float, mean_ratio: float) -> tuple[Array, Array]:
    """V (S,) and w per row, by bisection on E[w | s] = mean_ratio."""
    q = problem.expectation(problem.r)
    v = state_value(kind, q, problem.behaviour, temperature, mean_ratio)
    return v, ratio(kind, (q - v[:, None]) / temperature)[problem.s, problem.a]


@pytest.mark.parametrize("value_weight", [1.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bandit_against_bisection(kind: str, value_weight: float) -> None:
    problems = [bandit(0), bandit(1)]
    backend = FDice(divergence=kind, critic=TABLE, value_weight=value_weight, **COMMON).build(
        problems[0].data().spec, seed=(0, 1)
    )
    batch = stacked(problems)
    metrics = train(backend, batch, 400)
    ratios, values = backend.ratio(batch), backend.value(torch.eye(4).expand(2, -1, -1))
    for i, problem in enumerate(problems):
        v, w = root(problem, kind, TEMPERATURE, value_weight)
        assert error(ratios[i], w) < 1e-3
        assert error(values[i], v) < 1e-3
        per_state = np.bincount(problem.s, problem.p * ratios[i].numpy()) / np.bincount(
            problem.s, problem.p
        )
        np.testing.assert_allclose(per_state, value_weight, rtol=2e-3)
    np.testing.assert_allclose(metrics["mean_ratio"], value_weight, rtol=1e-3)
    np.testing.assert_allclose(metrics["mean_ratio_expected"], value_weight, rtol=1e-6)


@pytest.mark.parametrize(
    "config",
    [PiecewiseF(critic=TABLE, **COMMON), DeterministicDice(advantage=HEAD, **COMMON)],
    ids=lambda c: c.kind,
)
def test_a_constant_reward_leaves_the_behaviour_alone(config) -> None:
    problem = dataclasses.replace(bandit(0), r=np.full(20, 0.7))
    backend = config.build(problem.data().spec)
    train(backend, problem.data().full(), 300)
    np.testing.assert_allclose(backend.ratio(problem.data().full()), 1, atol=1e-3)
    np.testing.assert_allclose(backend.value(torch.eye(4)).detach(), 0.7, atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [PiecewiseF(critic=TABLE, **COMMON), DeterministicDice(advantage=HEAD, **COMMON)],
    ids=lambda c: c.kind,
)
def test_the_temperature_of_a_target_effective_sample_size(config) -> None:
    """The temperature at which the exact ratios of the bandit have an effective sample size of
    0.3, by a direct search.
    """
    problem, target = bandit(3, states=3, actions=12), 0.3

    def size(log_temperature: float) -> float:
        w = root(problem, "piecewise", math.exp(log_temperature), 1.0)[1]
        return (problem.p @ w) ** 2 / (problem.p @ w**2)

    expected = math.exp(
        float(bisect(lambda x: np.array(size(float(x)) - target), np.array(-4.0), np.array(3.0)))
    )
    assert size(math.log(expected)) == pytest.approx(target, abs=1e-6)
    config = config.model_copy(update={"temperature": f"ess:{target}", "optimizer": quick(0.05)})
    backend = config.build(problem.data().spec)
    metrics = train(backend, problem.data().full(), 1000)
    assert backend.temperature.item() == pytest.approx(expected, rel=0.01)
    assert metrics["effective_sample_size"] == pytest.approx(target, rel=0.01)
    assert metrics["temperature"] == pytest.approx(backend.temperature.item())
    again = config.build(problem.data().spec)
    again.load_state(backend.state())
    assert again.temperature.item() == backend.temperature.item()
