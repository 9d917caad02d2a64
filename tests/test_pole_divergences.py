"""Divergences with a pole, sparse ones and numeric ones in a backend: a bandit, whose ratios
bisection finds from the printed formulas.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import ddice
from ddice.dice_backends import FDice, OptiDice
from ddice.dice_backends.divergences import (
    Alpha,
    NumericDivergence,
    SquaredHellinger,
    TotalVariation,
)
from ddice.diffusion.networks import MLP, FlattenEncoder
from ddice.parts.part import Optimizer

Array = NDArray[np.float64]
STATES, ACTIONS, TEMPERATURE = 3, 5, 0.6
TABLE, RAW = MLP(hidden=()), FlattenEncoder(normalize=False)
# name -> (divergence, its pole, its ratio in the printed form)
CASES = {
    "reverse_kl": ("reverse_kl", 1.0, lambda y: 1 / (1 - y)),
    "neyman": ("neyman", 1.0, lambda y: (1 - y) ** -0.5),
    "squared_hellinger": ("squared_hellinger", 1.0, lambda y: (1 - y) ** -2.0),
    "jensen_shannon": ("jensen_shannon", math.log(2), lambda y: np.exp(y) / (2 - np.exp(y))),
    "le_cam": ("le_cam", 1.0, lambda y: np.maximum(0, 2 * (1 - y) ** -0.5 - 1)),
    "alpha=0.5": (Alpha(order=0.5), 2.0, lambda y: (1 - 0.5 * y) ** -2.0),
    "alpha=1.5": (Alpha(order=1.5), math.inf, lambda y: np.maximum(0, 1 + 0.5 * y) ** 2),
    "total_variation": (
        TotalVariation(smoothing=1),
        0.5,
        lambda y: np.where(y > -(0.125**0.5), 1 + 2 * y / np.sqrt(1 - 4 * y.clip(-0.4) ** 2), 0),
    ),
    "numeric": (NumericDivergence(function=SquaredHellinger().f), 1.0, lambda y: (1 - y) ** -2.0),
}


def bandit() -> tuple[ddice.data.Transitions, Array, Array]:
    """One row per (state, action), each ending its episode; with rewards (S, A) and behaviour
    probabilities (S, A).
    """
    rng = np.random.default_rng(0)
    rewards, behaviour = (
        rng.normal(size=(STATES, ACTIONS)),
        rng.dirichlet(np.full(ACTIONS, 3.0), STATES),
    )
    state, pair = np.repeat(np.arange(STATES), ACTIONS), np.arange(STATES * ACTIONS)
    one_hot = np.eye(STATES, dtype=np.float32)
    arrays = {
        "observations": one_hot[state],
        "next_observations": one_hot[state],
        "actions": np.eye(len(pair), dtype=np.float32),
        "rewards": rewards.reshape(-1),
        "terminations": np.ones(len(pair), bool),
        "weights": behaviour.reshape(-1) * ACTIONS,
        "initial_observations": one_hot,
    }
    return ddice.load_dataset(arrays, action_bounds=(-1, 1)), rewards, behaviour


def exact_ratios(ratio, pole: float, rewards: Array, behaviour: Array) -> Array:
    """w (S, A) with sum_a pi_D(a | s) w(a | s) = 1: V by bisection between the pole and a V
    above all rewards.
    """
    low = rewards.max(1) - min(pole, 100.0) * TEMPERATURE * (1 - 1e-12)
    high = rewards.max(1) + 100 * TEMPERATURE
    for _ in range(200):
        middle = (low + high) / 2
        large = (behaviour * ratio((rewards - middle[:, None]) / TEMPERATURE)).sum(1) > 1
        low, high = np.where(large, middle, low), np.where(large, high, middle)
    return ratio((rewards - high[:, None]) / TEMPERATURE)


@pytest.mark.gate
@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_a_bandit_against_bisection(case: str) -> None:
    """From Q = V = 0, where some y soon pass the pole: the tangent leads back."""
    divergence, pole, ratio = CASES[case]
    data, rewards, behaviour = bandit()
    optimizer = Optimizer(learning_rate=0.1, decay="cosine")
    config = FDice(
        divergence=divergence,
        critic=TABLE,
        value=TABLE,
        encoder=RAW,
        optimizer=optimizer,
        polyak=0.3,
        temperature=TEMPERATURE,
        discount=0.0,
    )
    backend, batch, steps = config.build(data.spec), data.full(), 600
    backend.until(steps)
    cut_rates = []
    for step in range(steps):
        metrics = backend.update(batch, step=step)
        assert all(value.isfinite().all() for value in metrics.values()), (step, metrics)
        cut_rates.append(metrics["cut_rate"].item())
    expected = exact_ratios(ratio, pole, rewards, behaviour)
    np.testing.assert_allclose((behaviour * expected).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(
        backend.ratio(batch).reshape(STATES, ACTIONS), expected, atol=2e-3 * expected.max()
    )
    assert cut_rates[-1] == 0
    assert (max(cut_rates) > 0) == (pole < 2)


@pytest.mark.parametrize("case", ["reverse_kl", "jensen_shannon", "le_cam"])
def test_in_the_dual_too(case: str) -> None:
    """OptiDICE on the same data: everything stays finite, and the mean ratio nears 1."""
    data, *_ = bandit()
    config = OptiDice(
        divergence=CASES[case][0],
        value=TABLE,
        encoder=RAW,
        rewards=(),
        expectation="sample",
        temperature=2.0,
        discount=0.5,
    )
    config = config.model_copy(update={"optimizer": Optimizer(learning_rate=0.05, decay="cosine")})
    backend = config.build(data.spec)
    backend.until(400)
    for step in range(400):
        metrics = backend.update(data.full(), step=step)
        assert all(value.isfinite().all() for value in metrics.values()), (step, metrics)
    assert metrics["mean_ratio"].item() == pytest.approx(1, abs=0.02)
    assert not torch.isnan(backend.log_ratio(data.full())).any()
