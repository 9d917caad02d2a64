from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import ddice
from ddice.data import Batch, Transitions
from ddice.dice_backends import GivenRatio

WEIGHTS = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0])


@pytest.fixture(scope="module")
def data() -> Transitions:
    """Two truncated episodes without a last next observation: source rows 2 and 5 are dropped."""
    arrays = {
        "observations": np.arange(6, dtype=np.float32)[:, None],
        "actions": np.zeros((6, 1)),
        "rewards": np.arange(6.0),
        "truncations": np.array([0, 0, 1, 0, 0, 1], bool),
    }
    with pytest.warns(UserWarning, match="2 of 6 rows dropped"):
        return ddice.load_dataset(arrays, action_bounds=(-1, 1))


def by_reward(batch: Batch) -> torch.Tensor:
    return torch.from_numpy(WEIGHTS)[batch.rewards.long()]


def q_function(observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    return actions.sum(-1)[None]


KEPT = WEIGHTS[[0, 1, 3, 4]]
HERE = by_reward.__module__


@pytest.mark.parametrize("form", ["array", "list", "tensor", "path", "str", "callable", "name"])
def test_every_form_of_a_source(form: str, data: Transitions, tmp_path: Path) -> None:
    """Weights are per *source* row: rows that were dropped count."""
    np.save(tmp_path / "w.npy", WEIGHTS)
    sources = {
        "array": WEIGHTS,
        "list": WEIGHTS.tolist(),
        "tensor": torch.from_numpy(WEIGHTS),
        "path": tmp_path / "w.npy",
        "str": str(tmp_path / "w.npy"),
        "callable": by_reward,
        "name": f"{HERE}:by_reward",
    }
    backend = GivenRatio(source=sources[form]).fit(data)
    batch = data.full()
    np.testing.assert_allclose(backend.ratio(batch), KEPT)
    assert backend.log_ratio(batch)[0] == -torch.inf
    sampled = data.sample(50, seed=0, step=0)
    np.testing.assert_allclose(backend.ratio(sampled), WEIGHTS[sampled.rows.numpy()])
    np.testing.assert_allclose(
        backend.ratio(data.subset(0.5, seed=0).full()),
        WEIGHTS[data.subset(0.5, seed=0).rows.numpy()],
    )


def test_several_seeds(data: Transitions) -> None:
    backend = GivenRatio(source=WEIGHTS).build(data.spec, seed=(3, 4))
    batch = data.sample(5, seed=(3, 4), step=0)
    assert backend.ratio(batch).shape == (2, 5)
    np.testing.assert_allclose(backend.ratio(batch), WEIGHTS[batch.rows.numpy()])
    assert backend.select(1).seed == 4


def test_what_it_offers(data: Transitions) -> None:
    without, given = (
        GivenRatio(source=WEIGHTS).build(data.spec),
        GivenRatio(source=WEIGHTS, q=q_function).build(data.spec),
    )
    named = GivenRatio(source=WEIGHTS, q=f"{HERE}:q_function", ratio_kind="state-action").build(
        data.spec
    )
    assert (without.has_q, given.has_q, named.has_q) == (False, True, True)
    assert (without.ratio_kind, named.ratio_kind) == ("action", "state-action")
    assert named.q(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]])).tolist() == [[1, 2]]
    assert not given.has_value
    with pytest.raises(TypeError, match="without values"):
        given.value(torch.zeros(1, 1))


def test_training_is_diagnostics_only(data: Transitions) -> None:
    backend = GivenRatio(source=WEIGHTS).build(data.spec)
    metrics = backend.update(data.full(), step=0)
    assert metrics["mean_ratio"].item() == pytest.approx(KEPT.mean())
    assert metrics["zero_rate"].item() == 0.25
    assert backend.state()["step"] == 1
    again = GivenRatio(source=WEIGHTS).build(data.spec)
    again.load_state(backend.state())
    assert again.step == 1
    with pytest.raises(ValueError, match=r"expected update\(batch, step=1\), got step=0"):
        again.update(data.full(), step=0)
    assert backend.fit(data, steps=100) is backend


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.ones(4), r"shape \(6,\), got \(4,\): dropped rows of the source count too"),
        (np.ones((6, 1)), r"shape \(6,\), got \(6, 1\)"),
        (np.array([1, 1, -0.1, 1, 1, -1]), r"2 are not, the first is -0\.1 in row 2"),
        (np.array([1, np.nan, 1, 1, 1, 1]), "first is nan in row 1"),
        (np.array([1, 1, 1, 1, 1, np.inf]), "first is inf in row 5"),
        (np.zeros(6), "all weights are 0"),
        ("nowhere.npy", "does not exist"),
        ("no_such_module:function", "cannot be imported"),
        (f"{HERE}:no_such_function", "cannot be imported"),
        ("nonsense", 'expected "module:function"'),
    ],
)
def test_sources_that_cannot_be(source, message: str, data: Transitions) -> None:
    with pytest.raises(ValueError, match=message):
        GivenRatio(source=source).build(data.spec)


@pytest.mark.parametrize("source", [3, None, {1: 2}])
def test_types_that_cannot_be(source) -> None:
    with pytest.raises(ValueError, match=r"expected an array, a \.npy path, a callable"):
        GivenRatio(source=source)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda batch: torch.ones(3), r"shape \(4,\), got \(3,\)"),
        (lambda batch: -torch.ones(4), "negative, infinite or NaN"),
        (lambda batch: torch.full((4,), torch.nan), "negative, infinite or NaN"),
        (lambda batch: torch.full((4,), torch.inf), "negative, infinite or NaN"),
    ],
)
def test_functions_that_return_nonsense(function, message: str, data: Transitions) -> None:
    with pytest.raises(ValueError, match=message):
        GivenRatio(source=function).build(data.spec).log_ratio(data.full())


def test_pickled_arrays_are_refused(data: Transitions, tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}] * 6, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        GivenRatio(source=str(tmp_path / "evil.npy")).build(data.spec)


def test_the_digest_follows_the_values() -> None:
    one, same, other = (
        GivenRatio(source=w).digest() for w in (WEIGHTS, WEIGHTS.copy(), WEIGHTS + 1)
    )
    assert one == same != other
    assert GivenRatio(source=by_reward).digest() != GivenRatio(source=q_function).digest()


def test_identity_follows_the_ratios_of_the_data(data: Transitions) -> None:
    def shifted(batch: Batch) -> torch.Tensor:
        return by_reward(batch) + shift

    shift = 0.0
    backend = GivenRatio(source=shifted).build(data.spec)
    first = backend.identity(data)
    assert backend.identity(data) == first
    shift = 1.0
    assert backend.identity(data) != first


def test_uniform_weights_are_ones(data: Transitions) -> None:
    uniform = GivenRatio(source="uniform").build(data.spec)
    batch = data.sample(16, seed=0, step=0)
    assert torch.equal(uniform.ratio(batch), torch.ones(16))
    ones = GivenRatio(source=np.ones(data.spec.source_rows)).build(data.spec)
    assert uniform.identity(data) == ones.identity(data)


def test_weights_and_ratios_are_different_things(data: Transitions) -> None:
    """Batch weights enter the diagnostics, never the ratios."""
    backend = GivenRatio(source=WEIGHTS).build(data.spec)
    heavy = dataclasses.replace(data.full(), weights=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(backend.ratio(heavy), KEPT)
    assert backend.update(heavy, step=0)["mean_ratio"].item() == 0
