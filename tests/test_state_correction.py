"""The state factor on top of an action ratio, against the exact occupancy of the policy pi
proportional to pi_D w.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ddice
from ddice.dice_backends import CorrectedRatio, GivenRatio, OptiDice, PiecewiseF, StateCorrection
from ddice.dice_backends.state_correction import correction_loss
from ddice.testing import (
    RAW,
    TABLE,
    Problem,
    error,
    policy_of,
    quick,
    random_problem,
    relative_error,
    semi_gradient,
    stacked,
    state_action_ratio,
    table_settings,
    train,
)

TEMPERATURE, DISCOUNT = 0.7, 0.9
CONFIG = StateCorrection(
    discount=DISCOUNT, potential=TABLE, factor=TABLE, encoder=RAW, optimizer=quick(0.05)
)


def corrected(
    problem: Problem, w: np.ndarray, config: StateCorrection = CONFIG, steps: int = 1000
) -> CorrectedRatio:
    """The correction of the given table w (S, A) of action ratios."""
    spec = problem.data().spec
    part = config.build(spec, backend=GivenRatio(source=w[problem.s, problem.a]).build(spec))
    train(part, problem.data().full(), steps)
    return part


@pytest.mark.oracle
@pytest.mark.parametrize("divergence", ["soft_chi2", pytest.param("kl", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "problem",
    [random_problem(1, states=50, actions=5, terminate=0.3), random_problem(3)],
    ids=["terminations", "endless"],
)
def test_it_reaches_the_exact_occupancy(problem: Problem, divergence: str) -> None:
    """Whatever the divergence, and whatever positive factor of the state the action ratios
    carry.
    """
    w = (
        semi_gradient(problem, "piecewise", TEMPERATURE, DISCOUNT).w
        * np.random.default_rng(0).uniform(0.5, 1.5, problem.states)[:, None]
    )
    part = corrected(
        problem,
        w,
        CONFIG.model_copy(update={"divergence": StateCorrection(divergence=divergence).divergence}),
    )
    exact = state_action_ratio(problem, policy_of(problem, w), DISCOUNT)[problem.s, problem.a]
    got = part.ratio(problem.data().full())
    assert relative_error(got, exact) < 0.01
    assert error(got, exact) < 0.02
    assert part.ratio_kind == "state-action"


@pytest.mark.oracle
def test_what_terminates_leaves() -> None:
    """0 -> 1 -> end, one action: d(0) = 1 - gamma, d(1) = gamma (1 - gamma), d^D uniform; the
    mass is (1 - gamma) (1 + gamma), not 1.
    """
    data = ddice.load_dataset(
        {
            "observations": np.eye(2, dtype=np.float32),
            "next_observations": np.eye(2, dtype=np.float32)[[1, 1]],
            "actions": np.zeros((2, 1), np.float32),
            "rewards": np.array([1.0, 2.0]),
            "terminations": np.array([False, True]),
            "truncations": np.array([False, False]),
        },
        action_bounds=(-1, 1),
    )
    part = CONFIG.build(data.spec, backend=GivenRatio(source=[1.0, 1.0]).build(data.spec))
    metrics = train(part, data.full(), 800)
    expected = 2 * (1 - DISCOUNT) * np.array([1, DISCOUNT])
    np.testing.assert_allclose(part.ratio(data.full()), expected, rtol=0.01)
    assert metrics["flow_balance"] == pytest.approx(1, abs=0.01)
    assert metrics["mean_ratio"] == pytest.approx((1 - DISCOUNT) * (1 + DISCOUNT), rel=0.01)


def test_zeros_of_the_action_ratio_stay_zeros() -> None:
    problem = random_problem(3)
    w = semi_gradient(problem, "half_pearson", 0.2, DISCOUNT).w
    assert (w == 0).any()
    part = corrected(problem, w, steps=5)
    assert torch.equal(
        part.log_ratio(problem.data().full()) == -torch.inf,
        torch.from_numpy(w[problem.s, problem.a] == 0),
    )


def test_the_loss_by_hand() -> None:
    """0.1 + (1 * 2 * 0.5 + 3 * 1 * (-1)) / 4 for weights 1 and 3."""
    got = correction_loss(
        torch.tensor([0.5, -1.0]),
        torch.tensor([2.0, 1.0]),
        torch.tensor(0.1),
        torch.tensor([1.0, 3.0]),
    )
    assert got.item() == pytest.approx(0.1 + (1 - 3) / 4)


def test_several_seeds_and_a_state() -> None:
    """Two seeds at once equal each alone; a state goes on bit for bit; the backend's discount, q
    and value are handed on.
    """
    problems = [random_problem(1), random_problem(2)]
    batch, spec = stacked(problems), problems[0].data().spec
    backend = PiecewiseF(**table_settings(temperature=1.0, discount=0.8)).build(spec, seed=(0, 1))
    config = CONFIG.model_copy(update={"discount": None})
    part = config.build(spec, seed=(0, 1), backend=backend)
    assert part.discount == 0.8
    train(part, batch, 20)
    single = config.build(spec, seed=1, backend=backend.select(1))
    train(single, problems[1].data().full(), 20)
    torch.testing.assert_close(
        part.select(1).ratio(problems[1].data().full()), single.ratio(problems[1].data().full())
    )
    torch.testing.assert_close(part.ratio(batch)[1], single.ratio(problems[1].data().full()))
    again = config.build(spec, seed=(0, 1), backend=backend)
    again.load_state(part.state())
    before = part.ratio(batch)
    for one in (part, again):
        one.until(30).update(batch, step=20)
    assert not torch.equal(part.ratio(batch), before)
    assert torch.equal(part.ratio(batch), again.ratio(batch))
    assert part.has_q
    assert part.has_value
    assert torch.equal(part.value(batch.observations), backend.value(batch.observations))


def test_fit_on_samples() -> None:
    data = random_problem(3).episodes(20, 10, seed=0)
    backend = PiecewiseF(**table_settings(temperature=1.0, discount=0.8)).fit(
        data, steps=3, progress=False, device="cpu"
    )
    part = CONFIG.fit(data, backend=backend, steps=3, progress=False, device="cpu")
    assert part.step == 3
    assert torch.isfinite(part.log_ratio(data.full())).all()


def test_refusals() -> None:
    problem = random_problem(1)
    spec = problem.data().spec
    with pytest.raises(ValueError, match="need no correction"):
        CONFIG.build(spec, backend=OptiDice().build(spec))
    given = GivenRatio(source=np.ones(len(problem.s))).build(spec)
    with pytest.raises(ValueError, match="no discount of its own"):
        StateCorrection().build(spec, backend=given)
    with pytest.raises(ValueError, match="needs initial observations"):
        CONFIG.build(spec.model_copy(update={"has_initial": False}), backend=given)
    part = CONFIG.build(spec, backend=given)
    with pytest.raises(ValueError, match=r"needs batch\.initial"):
        part.update(next(problem.data().batches(10)), step=0)
