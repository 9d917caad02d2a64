"""Orthogonal-gradient DICE against the true gradient of its dual, where theory says that they
agree.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tabular import RAW, TABLE, Problem, conjugate, deviations, error, quick, random_problem, ratio

from ddice.data import Batch
from ddice.dice_backends import AdvantageHead, OrthogonalDice
from ddice.dice_backends.orthogonal import OrthogonalDiceBackend, orthogonal_gradient

TEMPERATURE, DISCOUNT, TRADE_OFF = 0.7, 0.9, 0.6
CONFIG = OrthogonalDice(
    divergence="soft_chi2",
    value=TABLE,
    encoder=RAW,
    advantage=AdvantageHead(network=TABLE, members=1, clip_deviations=1000),
    optimizer=quick(),
    temperature=TEMPERATURE,
    discount=DISCOUNT,
    trade_off=TRADE_OFF,
    polyak=1.0,
)

pytestmark = pytest.mark.oracle


def helmert(states: int) -> np.ndarray:
    """(S, S - 1) features which, with a constant 1 appended, are orthogonal and of one length: a
    table in spite of the bias.
    """
    basis = np.linalg.qr(
        np.column_stack(
            [np.ones(states), np.random.default_rng(0).normal(size=(states, states - 1))]
        )
    )[0]
    return np.sqrt(states) * basis[:, 1:]


def orthogonal(
    problem: Problem, table: np.ndarray, seeds: int = 0
) -> tuple[OrthogonalDiceBackend, Batch]:
    """The backend on Helmert features with the value function `table`, eta = 1 and polyak = 1,
    and all outcomes as a batch.
    """
    features = torch.from_numpy(helmert(problem.states)).float()
    batch = problem.data().full()
    batch = dataclasses.replace(
        batch, observations=features[problem.s], next_observations=features[problem.following]
    )
    spec = problem.data().spec
    spec = spec.model_copy(
        update={
            "normalizer": spec.normalizer.model_copy(
                update=dict.fromkeys(("mean", "std"), (0.0,) * (problem.states - 1))
            )
        }
    )
    backend = CONFIG.build(spec, seed=tuple(range(seeds)) if seeds else 0)
    parameters = (
        np.column_stack([features.numpy(), np.ones(problem.states)]).T @ table / problem.states
    )
    with torch.no_grad():
        for network in (backend.value_network, backend.target):
            network.linear_0_weight.copy_(torch.from_numpy(parameters[:-1, None]))
            network.linear_0_bias.copy_(torch.from_numpy(parameters[-1:]))
    return backend, batch


def single(batch: Batch, index: int | list[list[int]]) -> Batch:
    index = torch.tensor([index] if isinstance(index, int) else index)
    return Batch(
        **{
            f.name: getattr(batch, f.name)[index]
            for f in dataclasses.fields(batch)
            if f.name != "initial"
        }
    )


def gradient(backend: OrthogonalDiceBackend) -> torch.Tensor:
    return torch.cat(
        [
            backend.value_network.linear_0_weight.grad.squeeze(-1),
            backend.value_network.linear_0_bias.grad,
        ],
        -1,
    )


def true_gradient(problem: Problem, table: np.ndarray, i: int) -> np.ndarray:
    """d/dV of (1 - lam) V(s) + lam alpha f*((r + gamma V(s') - V(s)) / alpha) by finite
    differences of the table, then to the parameters.
    """

    def loss(v: np.ndarray) -> float:
        y = (
            problem.r[i] + DISCOUNT * (not problem.d[i]) * v[problem.following[i]] - v[problem.s[i]]
        ) / TEMPERATURE
        return (1 - TRADE_OFF) * v[problem.s[i]] + TRADE_OFF * TEMPERATURE * float(
            conjugate("soft_chi2", y)
        )

    steps = 1e-6 * np.eye(problem.states)
    in_table = np.array([(loss(table + h) - loss(table - h)) / 2e-6 for h in steps])
    return np.column_stack([helmert(problem.states), np.ones(problem.states)]).T @ in_table


def test_orthogonal_projection_of_single_transitions_is_the_true_gradient() -> None:
    problem = random_problem(10, terminate=0.3, loops=False)
    table = np.random.default_rng(1).normal(size=problem.states)
    for i in range(0, len(problem.s), 5):
        backend, batch = orthogonal(problem, table)
        backend.update(single(batch, i), step=0)
        np.testing.assert_allclose(
            gradient(backend).numpy(), true_gradient(problem, table, i), rtol=0, atol=2e-5
        )


def test_the_projection_is_made_for_every_seed_apart() -> None:
    problem = random_problem(10, terminate=0.3, loops=False)
    table = np.random.default_rng(1).normal(size=problem.states)
    backend, batch = orthogonal(problem, table, seeds=3)
    backend.update(single(batch, [[4], [17], [30]]), step=0)
    expected = np.stack([true_gradient(problem, table, i) for i in (4, 17, 30)])
    np.testing.assert_allclose(gradient(backend).numpy(), expected, rtol=0, atol=2e-5)


def test_on_a_self_loop_nothing_of_the_backward_gradient_is_left() -> None:
    """Forward and backward are parallel there: only the semi-gradient remains."""
    problem = dataclasses.replace(random_problem(10), d=np.zeros(54, bool))
    problem = dataclasses.replace(problem, following=problem.s)
    table = np.random.default_rng(1).normal(size=problem.states)
    backend, batch = orthogonal(problem, table)
    backend.update(single(batch, 7), step=0)
    y = (problem.r[7] + (DISCOUNT - 1) * table[problem.s[7]]) / TEMPERATURE
    direction = np.append(helmert(problem.states)[problem.s[7]], 1)
    np.testing.assert_allclose(
        gradient(backend).numpy(),
        (1 - TRADE_OFF - TRADE_OFF * ratio("soft_chi2", y)) * direction,
        rtol=0,
        atol=2e-5,
    )


def test_at_the_exact_dual_gradients_cancel_and_the_flow_balances() -> None:
    problem = random_problem(11, branches=1, terminate=0.3, loops=False)

    def dual_of(v: np.ndarray) -> float:
        y = (problem.r + DISCOUNT * ~problem.d * v[problem.following] - v[problem.s]) / TEMPERATURE
        return float(
            (
                problem.p
                * (
                    (1 - TRADE_OFF) * v[problem.s]
                    + TRADE_OFF * TEMPERATURE * conjugate("soft_chi2", y)
                )
            ).sum()
        )

    table = minimize(dual_of, np.zeros(problem.states), method="BFGS", options={"gtol": 1e-8}).x
    total = np.zeros(problem.states)
    for i, p in enumerate(problem.p):
        backend, batch = orthogonal(problem, table)
        backend.update(single(batch, i), step=0)
        total += p * gradient(backend).numpy()
    assert np.abs(total).max() < 1e-5
    backend, batch = orthogonal(problem, table)
    assert backend.update(batch, step=0)["flow_balance"].item() == pytest.approx(1, abs=1e-4)
    w = ratio("soft_chi2", deviations(problem, DISCOUNT, table, 0.0) / TEMPERATURE)
    backend, batch = orthogonal(problem, table)
    assert error(backend.ratio(batch), w[problem.s, problem.a]) < 1e-5


def test_projection_by_hand() -> None:
    """forward (3, 4) over two tensors, backward (1, 2): share = (3 + 8) / 25."""
    forward, backward = (
        [torch.tensor([3.0]), torch.tensor([[4.0]])],
        [torch.tensor([1.0]), torch.tensor([[2.0]])],
    )
    got = orthogonal_gradient(forward, backward, 0.5, 0)
    expected = [3 + 0.5 * (1 - 0.44 * 3), 4 + 0.5 * (2 - 0.44 * 4)]
    assert [x.item() for x in got] == pytest.approx(expected)
    projected = [g - f for f, g in zip(forward, got, strict=True)]
    assert sum(
        (f * p).sum() for f, p in zip(forward, projected, strict=True)
    ).item() == pytest.approx(0, abs=1e-6)


def test_projection_by_hand_for_two_seeds() -> None:
    forward, backward = (
        [torch.tensor([[1.0, 0.0], [0.0, 2.0]])],
        [torch.tensor([[5.0, 7.0], [5.0, 7.0]])],
    )
    torch.testing.assert_close(
        orthogonal_gradient(forward, backward, 1.0, 1)[0], torch.tensor([[1.0, 7.0], [5.0, 2.0]])
    )


def test_without_a_forward_gradient_the_backward_one_is_whole() -> None:
    zero, backward = [torch.zeros(2)], [torch.tensor([1.0, -2.0])]
    assert torch.equal(orthogonal_gradient(zero, backward, 1.0, 0)[0], backward[0])


def test_averaged_copies_stand_at_the_other_end() -> None:
    """With a slow average the live V enters the forward gradient through s alone, and the
    backward one through s' alone.
    """
    problem = random_problem(10, loops=False)
    table = np.random.default_rng(1).normal(size=problem.states)
    backend, batch = orthogonal(problem, table)
    with torch.no_grad():
        backend.target.linear_0_weight.zero_()
        backend.target.linear_0_bias.fill_(0.5)
    row, i = single(batch, 4), 4
    backend.update(row, step=0)
    forward = ratio(
        "soft_chi2", (problem.r[i] + DISCOUNT * 0.5 - table[problem.s[i]]) / TEMPERATURE
    )
    backward = ratio(
        "soft_chi2", (problem.r[i] + DISCOUNT * table[problem.following[i]] - 0.5) / TEMPERATURE
    )
    in_table = np.zeros(problem.states)
    in_table[problem.s[i]] = 1 - TRADE_OFF - TRADE_OFF * forward
    in_table[problem.following[i]] = TRADE_OFF * DISCOUNT * backward
    expected = np.column_stack([helmert(problem.states), np.ones(problem.states)]).T @ in_table
    np.testing.assert_allclose(gradient(backend).numpy(), expected, rtol=0, atol=2e-5)
