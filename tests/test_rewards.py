from __future__ import annotations

import numpy as np
import pytest
import torch

import ddice
from ddice.data.spec import RewardSummary
from ddice.dice_backends import PiecewiseF
from ddice.dice_backends.rewards import (
    MinusOneZero,
    ReturnRange,
    Rewards,
    Scale,
    Standardize,
    UnitValues,
)

REWARDS = np.array(
    [1.0, 0.0, -2.0, 3.0, 0.0, 0.0, 0.0, 0.5]
)  # episodes of 3 and 5 steps: returns -1 and 3.5
ENDS = np.array([0, 0, 1, 0, 0, 0, 0, 1], bool)


def dataset(rewards: np.ndarray = REWARDS) -> ddice.data.Transitions:
    count = len(rewards)
    observations = np.arange(count, dtype=np.float32)[:, None]
    ends = {"terminations": ENDS[:count], "truncations": np.zeros(count, bool)}
    return ddice.load_dataset(
        {"observations": observations, "actions": np.zeros((count, 1)), "rewards": rewards, **ends},
        action_bounds=(-1, 1),
    )


def summary(rewards: np.ndarray) -> RewardSummary:
    return dataset(rewards).spec.rewards


def transformed(*transforms) -> tuple[Rewards, np.ndarray]:
    rewards = Rewards(transforms, summary(REWARDS))
    return rewards, rewards(torch.from_numpy(REWARDS)).numpy()


def test_no_transforms() -> None:
    rewards, got = transformed()
    np.testing.assert_array_equal(got, REWARDS)
    assert rewards.absorbing == 0


def test_scale() -> None:
    rewards, got = transformed(Scale(factor=0.25))
    np.testing.assert_allclose(got, REWARDS / 4)
    assert rewards.absorbing == 0


def test_return_range() -> None:
    """1000 over the largest minus the smallest return, 3.5 - (-1)."""
    rewards, got = transformed(ReturnRange())
    np.testing.assert_allclose(got, REWARDS * 1000 / 4.5)
    assert rewards.absorbing == 0


def test_unit_values() -> None:
    """The root mean square reward, earned for ever, is worth 1: k rms / (1 - gamma) = 1."""
    rms = np.sqrt((REWARDS**2).mean())
    rewards, got = transformed(UnitValues(discount=0.75))
    np.testing.assert_allclose(got, REWARDS / (4 * rms), rtol=1e-6)
    assert rewards.absorbing == 0


def test_unit_values_of_a_backend_have_its_discount() -> None:
    """Two rewards of 2 per step: worth 1 in all, so each 1 - gamma of it."""
    spec = dataset(np.full(2, 2.0)).spec
    backend = PiecewiseF(rewards=("unit_values",), discount=0.95).build(spec)
    assert backend.rewards(torch.tensor([2.0])).item() == pytest.approx(0.05)
    own = PiecewiseF(rewards=(UnitValues(discount=0.5),), discount=0.95).build(spec)
    assert own.rewards(torch.tensor([2.0])).item() == pytest.approx(0.5)


def test_unit_values_of_nothing() -> None:
    with pytest.raises(ValueError, match="all are zero"):
        Rewards((UnitValues(discount=0.9),), summary(np.zeros(3)))(torch.zeros(3))
    with pytest.raises(ValueError, match="needs a discount"):
        Rewards((UnitValues(),), summary(REWARDS))


def test_standardize() -> None:
    mean, std = REWARDS.mean(), np.sqrt(((REWARDS - REWARDS.mean()) ** 2).mean())
    rewards, got = transformed(Standardize())
    np.testing.assert_allclose(got, (REWARDS - mean) / std, rtol=1e-6)
    assert rewards.absorbing == pytest.approx(-mean / std)


def test_minus_one_zero() -> None:
    rewards, got = transformed(MinusOneZero())
    np.testing.assert_array_equal(got, [0, -1, -1, 0, -1, -1, -1, 0])
    assert rewards.absorbing == 0


def test_order_and_absorbing_reward() -> None:
    """Standardising after -1/0: what absorption costs, 0, is transformed on from there."""
    steps = np.where(REWARDS > 0, 0.0, -1.0)
    rewards, got = transformed(MinusOneZero(), Standardize(), Scale(factor=0.1))
    np.testing.assert_allclose(got, 0.1 * (steps - steps.mean()) / steps.std(), rtol=1e-6)
    assert rewards.absorbing == pytest.approx(0.1 * (0 - steps.mean()) / steps.std())
    rewards, got = transformed(Scale(factor=3), Standardize())
    np.testing.assert_allclose(got, transformed(Standardize())[1], rtol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "transforms",
    [
        (Scale(factor=2.5),),
        (ReturnRange(),),
        (Standardize(),),
        (MinusOneZero(),),
        (MinusOneZero(), ReturnRange()),
        (ReturnRange(), Standardize(), Scale(factor=0.1)),
        (Standardize(), Standardize()),
        (UnitValues(discount=0.9), UnitValues(discount=0.5)),
    ],
    ids=lambda steps: "+".join(step.kind for step in steps),
)
def test_constants_of_a_composition_are_those_of_the_transformed_data(transforms) -> None:
    """The closed-form summary after each transform equals the summary measured on a dataset with
    the transformed rewards.
    """
    known = summary(REWARDS)
    for count, transform in enumerate(transforms, start=1):
        known = transform.summarise(known)
        measured = summary(transformed(*transforms[:count])[1])
        for name, value in known.model_dump().items():
            if value is not None:
                assert value == pytest.approx(getattr(measured, name), rel=1e-5, abs=1e-6), name


def test_return_range_of_costs() -> None:
    """Returns of -1/0 rewards are minus the steps without reward: 2 and 3 of them here."""
    np.testing.assert_allclose(
        transformed(MinusOneZero(), ReturnRange())[1], np.where(REWARDS > 0, 0, -1) * 1000 / (3 - 2)
    )
    alike = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="different returns, all are -2"):
        Rewards((MinusOneZero(), ReturnRange()), summary(alike))


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ((Standardize(), ReturnRange()), "put it before any shift"),
        ((Standardize(), MinusOneZero()), "must come before any shift"),
        ((MinusOneZero(), Standardize(), ReturnRange()), "put it before any shift"),
    ],
)
def test_orders_that_mean_nothing(transforms, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rewards(transforms, summary(REWARDS))


def test_constant_rewards() -> None:
    flat = summary(np.array([1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="rewards that differ"):
        Rewards((Standardize(),), flat)
    with pytest.raises(ValueError, match="different returns"):
        Rewards((ReturnRange(),), flat)


def test_independent_transitions_have_no_returns() -> None:
    with pytest.raises(ValueError, match="data with episodes"):
        Rewards((ReturnRange(),), RewardSummary(mean=0.0, std=1.0, positive_share=0.5))


def test_a_backend_says_so_when_it_is_built() -> None:
    with pytest.raises(ValueError, match="different returns"):
        PiecewiseF(rewards=("return_range",)).build(dataset(np.ones(3)).spec)


def test_names_and_dicts_in_the_configuration() -> None:
    config = PiecewiseF(rewards=("minus_one_zero", {"kind": "scale", "factor": 2}))
    assert config.rewards == (MinusOneZero(), Scale(factor=2))
    assert PiecewiseF.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="did you mean 'standardize'"):
        PiecewiseF(rewards=("standardise",))
    with pytest.raises(ValueError, match="factor"):
        PiecewiseF(rewards=({"kind": "scale", "factor": -1},))


def test_shapes_and_types_are_kept() -> None:
    rewards = Rewards((MinusOneZero(), Scale(factor=2)), summary(REWARDS))
    got = rewards(torch.tensor([[1.0], [-1.0]]))
    assert got.dtype == torch.float32
    assert got.tolist() == [[0], [-2]]


@pytest.mark.parametrize(
    "given", ["standardize", {"kind": "standardize"}, ["standardize"], (Standardize(),)]
)
def test_one_transform_needs_no_list(given) -> None:
    assert PiecewiseF(rewards=given).rewards == (Standardize(),)
