"""Lambda-returns: by hand on five rows, at both ends of lambda, between refreshes, and at their
fixed point on sampled episodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tabular import RAW, TABLE, error, quick, random_problem, state_value, train

import ddice
from ddice.data import Transitions
from ddice.data.measures import Pieces
from ddice.dice_backends import (
    AdvantageHead,
    DeterministicDice,
    FDice,
    Iql,
    LambdaReturns,
    OneStep,
    PiecewiseF,
)
from ddice.dice_backends.backup import Backup, lambda_returns
from ddice.dice_backends.divergences import HalfPearson
from ddice.diffusion.networks import MLP
from ddice.testing import check_backend, expectile, lambda_fixed_point
from ddice.testing.example import example_data

GAMMA, LAM = 0.5, 0.75
SMALL: dict[str, Any] = {
    "value": MLP(hidden=(8,), layer_norm=True),
    "critic": MLP(hidden=(8,), layer_norm=True),
    "batch_size": 16,
}
OFTEN = LambdaReturns(lam=0.9, refresh_every=2)


def five_rows() -> Transitions:
    """0 -> 1 -> 2 -> end with rewards 1, 2, 4, and 3 -> 4 -> 5 cut by time with rewards 8, 16."""
    states = np.eye(6, dtype=np.float32)
    return ddice.load_dataset(
        {
            "observations": states[:5],
            "next_observations": states[[1, 2, 5, 4, 5]],
            "actions": np.zeros((5, 1), np.float32),
            "rewards": np.array([1.0, 2.0, 4.0, 8.0, 16.0]),
            "terminations": np.array([0, 0, 1, 0, 0], bool),
            "truncations": np.array([0, 0, 0, 0, 1], bool),
        },
        action_bounds=(-1, 1),
    )


def returns(
    data: Transitions,
    next_values: Any,  # (*seeds, N)
    lam: float,
) -> np.ndarray:
    found = lambda_returns(
        data.rewards,
        torch.as_tensor(next_values),
        data.terminations,
        data.pieces,
        discount=GAMMA,
        lam=lam,
    )
    assert found.dtype == torch.float64
    return found.numpy()


def recursion(data: Transitions, next_values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """The definition, row by row from behind."""
    assert data.episode is not None
    episode, found = data.episode.tolist(), np.zeros(len(data))
    for t in reversed(range(len(data))):
        follows = t + 1 < len(data) and episode[t + 1] == episode[t]
        ahead = (1 - lam) * next_values[t] + lam * found[t + 1] if follows else next_values[t]
        found[t] = float(data.rewards[t]) + (0.0 if data.terminations[t] else gamma * ahead)
    return found


def test_five_rows_by_hand() -> None:
    """V(s') = 10, 20, nothing, 40, 60; what stands behind the termination is not read."""
    g2, g4 = 4.0, 16 + 0.5 * 60
    g1 = 2 + 0.5 * (0.25 * 20 + 0.75 * g2)
    g0 = 1 + 0.5 * (0.25 * 10 + 0.75 * g1)
    g3 = 8 + 0.5 * (0.25 * 40 + 0.75 * g4)
    values = np.array([10.0, 20, np.nan, 40, 60])
    assert returns(five_rows(), values, LAM).tolist() == [g0, g1, g2, g3, g4]
    both = returns(five_rows(), np.stack([values, 2 * values]), LAM)
    assert both[0].tolist() == [g0, g1, g2, g3, g4]
    assert both[1, 4] == 16 + 0.5 * 120


def test_both_ends_of_lambda() -> None:
    """0 is one step; 1 is the return-to-go where the episode ends by itself, and with gamma^k V
    behind it where it was cut.
    """
    data, values = five_rows(), np.array([10.0, 20, 30, 40, 60])
    one_step = [1 + 0.5 * 10, 2 + 0.5 * 20, 4, 8 + 0.5 * 40, 16 + 0.5 * 60]
    assert returns(data, values, 0.0).tolist() == one_step
    behind = np.array([0, 0, 0, 0.25 * 60, 0.5 * 60])
    to_go = data.returns_to_go(data.rewards, GAMMA).numpy() + behind
    assert returns(data, values, 1.0).tolist() == to_go.tolist()


def test_a_longer_set_against_the_recursion() -> None:
    data = example_data()
    values = np.random.default_rng(0).normal(size=len(data))
    found = returns(data, values, 0.9)
    np.testing.assert_allclose(found, recursion(data, values, GAMMA, 0.9), rtol=1e-6)


def test_pieces_by_hand() -> None:
    pieces = Pieces.of(torch.tensor([0, 0, 0, 1, 2, 2]))
    assert pieces.remaining.tolist() == [2, 1, 0, 0, 1, 0]
    assert pieces.longest == 3
    values = torch.tensor([[1.0, 2, 4, 8, 16, 32], [0, 0, 1, 0, 0, 1]])
    expected = [[3, 4, 4, 8, 32, 32], [0.25, 0.5, 1, 0, 0.5, 1]]
    assert pieces.to_go(values, 0.5).tolist() == expected


def trained(config: Any, data: Transitions, steps: int, seed: Any = 0) -> Any:
    backend = config.build(data.spec, seed=seed)
    backend.prepare(data)
    for step in range(steps):
        backend.update(data.sample(16, seed=seed, step=step), step=step)
    return backend


@pytest.mark.parametrize("part", [PiecewiseF, Iql])
def test_at_lambda_0_refreshed_always_it_is_one_step(part: Any) -> None:
    data = example_data()
    always = LambdaReturns(lam=0.0, refresh_every=1)
    one, other = (trained(part(**SMALL, backup=b), data, 6) for b in (OneStep(), always))
    full = data.full()
    torch.testing.assert_close(one.log_ratio(full), other.log_ratio(full), rtol=1e-4, atol=1e-5)
    assert part(**SMALL) == part(**SMALL, backup="one_step")


def test_targets_stand_still_between_refreshes() -> None:
    """Steps 0 to 2 read what V said before step 0, step 3 what it says then."""
    data = example_data()
    config = PiecewiseF(**SMALL, backup=LambdaReturns(lam=0.9, refresh_every=3), discount=0.8)
    backend = config.build(data.spec)
    backend.prepare(data)
    for step in range(5):
        batch = data.sample(16, seed=0, step=step)
        if step in (0, 3):
            values = backend.value(data.next_observations).detach().double().numpy()
            expected = recursion(data, values, 0.8, 0.9)
        found = backend.backup.targets(backend, batch, step)
        np.testing.assert_allclose(found, expected[batch.rows.numpy()], rtol=1e-5, atol=1e-6)
        backend.update(batch, step=step)


def test_the_first_refresh_is_behind_the_warm_start() -> None:
    """Warm targets are returns-to-go; step 3 looks at the V that they made, and so does step 4."""
    data = example_data()
    config = PiecewiseF(**SMALL, backup=OFTEN, warm_start_steps=3, discount=0.8)
    backend = trained(config, data, 3)
    assert backend.backup.returns.isnan().all()
    values = backend.value(data.next_observations).detach().double().numpy()
    for step in (3, 4):
        backend.update(data.sample(16, seed=0, step=step), step=step)
        expected = recursion(data, values, 0.8, 0.9)
        np.testing.assert_allclose(backend.backup.returns[data.rows], expected, rtol=1e-5)
    backend.update(data.sample(16, seed=0, step=5), step=5)
    assert error(backend.backup.returns[data.rows], expected) > 1e-3


def test_rows_that_were_dropped_are_never_read() -> None:
    """Returns lie by the row of the source: every episode loses its last one here."""
    arrays = {
        "observations": np.arange(8, dtype=np.float32)[:, None],
        "actions": np.zeros((8, 1), np.float32),
        "rewards": np.arange(8.0),
        "terminations": np.zeros(8, bool),
        "truncations": np.arange(8) % 4 == 3,
    }
    with pytest.warns(UserWarning, match="2 of 8 rows dropped"):
        data = ddice.load_dataset(arrays, action_bounds=(-1, 1))
    assert data.rows.tolist() == [0, 1, 2, 4, 5, 6]
    backend = trained(PiecewiseF(**SMALL, backup=OFTEN), data, 1)
    assert backend.backup.returns[[3, 7]].isnan().all()
    part = data.subset(0.5, seed=0)
    again = trained(PiecewiseF(**SMALL, backup=OFTEN), part, 1)
    known = ~again.backup.returns.isnan()
    assert known.nonzero().flatten().tolist() == part.rows.tolist()


@pytest.mark.parametrize("part", [PiecewiseF, Iql])
def test_conformance(part: Any) -> None:
    """Resumed between two refreshes, and with several seeds, among the rest."""
    check_backend(part(**SMALL, backup=OFTEN))


# V alone: G stands for Q.

NET = MLP(hidden=(8,), layer_norm=True)
ALONE = DeterministicDice(
    value=NET, advantage=AdvantageHead(network=NET), batch_size=16, temperature=2.0, discount=0.8
)


def alone(backup: Backup, warm_start_steps: int = 0) -> DeterministicDice:
    return DeterministicDice(
        **{**dict(ALONE), "backup": backup, "warm_start_steps": warm_start_steps}
    )


def test_conformance_of_v_alone() -> None:
    check_backend(alone(OFTEN))


def test_v_alone_compares_the_lambda_return_with_v() -> None:
    """w = 1 + y where the divergence is Pearson's half, y = (G - V) / 2: G of the averaged V at
    the last refresh, before step 4, and of rewards alone at lambda = 1, where it ends.
    """
    data = five_rows()
    config = alone(LambdaReturns(lam=0.5, refresh_every=4)).model_copy(
        update={"divergence": HalfPearson()}
    )
    backend = config.build(data.spec)
    backend.prepare(data)
    for step in range(6):
        if step == 4:
            with torch.no_grad():
                values = backend.target(backend.encoder(data.next_observations)).squeeze(-1)
            expected = recursion(data, values.double().numpy(), 0.8, 0.5)
        backend.update(data.full(), step=step)
    with torch.no_grad():
        y = (torch.as_tensor(expected).float() - backend.value(data.observations)) / 2
    torch.testing.assert_close(backend.ratio(data.full()), (1 + y).clamp(min=0))


def test_the_ratio_of_v_alone_before_the_first_refresh() -> None:
    """In a warm start, as joint training asks: with the V of that moment."""
    data = example_data()
    backend = trained(alone(OFTEN, warm_start_steps=5), data, 2)
    values = backend.bootstrap_value(data.next_observations).detach().double().numpy()
    found = backend.backup.latest(backend, data.full())
    np.testing.assert_allclose(found, recursion(data, values, 0.8, 0.9), rtol=1e-5, atol=1e-6)


def test_rows_of_other_data_are_refused() -> None:
    one, other = example_data().split(0.5, seed=0)
    backend = trained(alone(OFTEN), one, 1)
    with pytest.raises(ValueError, match="ask for ratios of that dataset"):
        backend.log_ratio(other.full())
    unprepared = alone(OFTEN).build(one.spec)
    with pytest.raises(ValueError, match="of the dataset that was prepared for training"):
        unprepared.log_ratio(one.full())


@pytest.mark.oracle
@pytest.mark.parametrize(("part", "lam"), [("iql", 0.5), ("f_dice", 1.0)])
def test_the_fixed_point_on_sampled_episodes(part: str, lam: float) -> None:
    """A linear system over all rows, with cuts and terminations."""
    problem = random_problem(2, states=4, actions=2, terminate=0.5)
    data = problem.episodes(60, 6, seed=0)
    tables = {
        "value": TABLE,
        "critic": TABLE,
        "encoder": RAW,
        "optimizer": quick(0.1),
        "polyak": 0.3,
        "temperature": 0.7,
        "discount": 0.9,
        "backup": LambdaReturns(lam=lam, refresh_every=5),
    }
    if part == "iql":
        config, state = Iql(expectile=0.8, **tables), lambda q, b: expectile(q, b, 0.8)
    else:
        config = FDice(divergence="kl", **tables)
        state = lambda q, b: state_value("kl", q, b, 0.7, 1.0)  # noqa: E731
    v, q = lambda_fixed_point(problem, data, state, discount=0.9, lam=lam)
    backend = config.build(data.spec)
    backend.prepare(data)
    train(backend, data.full(), 500)
    assert error(backend.value(torch.eye(problem.states)), v) < 2e-3
    assert error(backend.q(*problem.query()).mean(0), q.reshape(-1)) < 2e-3


@pytest.mark.parametrize("lam", [-0.1, 1.1])
def test_a_senseless_lambda(lam: float) -> None:
    with pytest.raises(ValueError, match=r"lam\n"):
        LambdaReturns(lam=lam)


def test_data_without_episodes_are_refused_before_training() -> None:
    config = PiecewiseF(backup=LambdaReturns())
    with pytest.raises(ValueError, match="independent transitions: give whole episodes"):
        config.build(random_problem(0).data().spec)
    single = {
        "observations": np.zeros((3, 1), np.float32),
        "actions": np.zeros((3, 1), np.float32),
        "rewards": np.ones(3),
        "terminations": np.ones(3, bool),
        "truncations": np.zeros(3, bool),
    }
    with pytest.raises(ValueError, match="episodes of one row each"):
        config.build(ddice.load_dataset(single, action_bounds=(-1, 1)).spec)


def test_a_loop_without_the_dataset() -> None:
    data = example_data()
    backend = PiecewiseF(**SMALL, backup=OFTEN).build(data.spec)
    with pytest.raises(ValueError, match=r"call backend\.prepare\(data\)"):
        backend.update(data.sample(16, seed=0, step=0), step=0)
