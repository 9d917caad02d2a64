"""The discount that data ask for: measured on episodes by hand and by brute force, and the same
training as with the number.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from pydantic import ValidationError

import ddice
from ddice.data import Transitions
from ddice.data.horizon import Horizon, horizon_of, survival_value
from ddice.dice_backends import GivenRatio, OptiDice, PiecewiseF, StateCorrection
from ddice.ope import estimate_value
from ddice.runs.training import Training
from ddice.testing.catalogue import BACKENDS

TRAINED = [example for example in BACKENDS if example.kind != "given"]


def episodes(lengths: list[int], ended: list[bool], rewards: Any) -> dict[str, np.ndarray]:
    """Episodes of these lengths, which terminate or are cut."""
    count = sum(lengths)
    last = np.cumsum(lengths) - 1
    terminations, truncations = np.zeros(count, bool), np.zeros(count, bool)
    terminations[last] = ended
    truncations[last] = ~np.array(ended)
    random = np.random.default_rng(0)
    walk = random.normal(size=(count + 1, 3))
    return {
        "observations": walk[:-1],
        "next_observations": walk[1:],
        "actions": random.uniform(-1, 1, size=(count, 2)),
        "rewards": np.asarray(rewards, np.float32),
        "terminations": terminations,
        "truncations": truncations,
    }


def load(arrays: dict[str, np.ndarray]) -> Transitions:
    return ddice.load_dataset(arrays, action_bounds=(-1, 1))


def measured(arrays: dict[str, np.ndarray]) -> Horizon:
    found = load(arrays).spec.horizon
    assert found is not None
    return found


DENSE = np.linspace(1, 2, 1000)
FALLING = episodes([200, 200, 600], [True, True, False], DENSE)
SPARSE = np.zeros(1000)
SPARSE[[300, 301, 999]] = 1.0  # waits of 300 and 97 rows; no reward in the second episode
MAZE = episodes([400, 502, 98], [False, False, False], SPARSE)


# -- the rule, on known episodes


def test_episodes_that_terminate_give_the_length_that_a_row_sees() -> None:
    """(200^2 + 200^2 + 600^2) / 1000 = 440 steps, and 1 - 1 / 440 = 0.99773."""
    found = measured(FALLING)
    assert found.length == 440
    assert found.hazard == 2 / 1000
    assert found.terminated == pytest.approx(2 / 3)
    assert (found.ends, found.sparse, found.discount) == (True, False, 0.9977)


def test_sparse_rewards_give_the_path_to_them() -> None:
    """(300 * 301 + 97 * 98) / 397 = 251.385 steps, and 1 - 1 / 251.385 = 0.99602."""
    found = measured(MAZE)
    assert found.path == pytest.approx((300 * 301 + 97 * 98) / 397, rel=1e-15)
    assert found.usual_share == 997 / 1000
    assert (found.ends, found.sparse, found.discount) == (False, True, 0.996)


@pytest.mark.parametrize(
    ("arrays", "discount"),
    [
        # a reward in every step and no end: there is nothing further to see
        (episodes([500, 500], [False, False], DENSE), 0.99),
        # one fall in 25 episodes decides about no return
        (episodes([40] * 25, [True] + [False] * 24, DENSE), 0.99),
        # episodes of 20 steps: the least; of 2,000: the most
        (episodes([20] * 50, [True] * 50, DENSE), 0.99),
        (episodes([2000], [True], np.arange(2000)), 0.999),
        # costs until the goal: no reward is on the way to another, the end counts
        (episodes([500, 500], [True, True], -np.ones(1000)), 0.998),
        # the same where the last step costs nothing: 500 steps to that
        (episodes([500, 500], [True, True], (np.arange(1000) % 500 == 499) - 1.0), 0.998),
    ],
)
def test_the_rule(arrays: dict[str, np.ndarray], discount: float) -> None:
    assert measured(arrays).discount == discount


def brute_force(rewards: Any, terminations: Any, episode: Any) -> tuple[float, float | None]:
    """Mean length of the piece that a row lies in, and mean path, by loops over pieces."""
    pieces: list[list[float]] = []
    for row, reward in enumerate(rewards):
        begins = row == 0 or episode[row] != episode[row - 1] or terminations[row - 1]
        if begins:
            pieces.append([])
        pieces[-1].append(reward)
    values = sorted(set(rewards))
    usual = max(values, key=list(rewards).count)
    paths = []
    for piece in pieces:
        waiting = 0
        for reward in piece:
            if reward == usual:
                waiting += 1
                continue
            paths += [waiting + 1] * waiting
            waiting = 0
    lengths = [len(piece) for piece in pieces for _ in piece]
    return float(np.mean(lengths)), float(np.mean(paths)) if paths else None


@pytest.mark.parametrize("seed", range(5))
def test_lengths_and_paths_equal_a_count_row_by_row(seed: int) -> None:
    random = np.random.default_rng(seed)
    rewards = random.choice([0.0, 0.0, 0.0, 0.0, 1.0, 2.0], size=60)
    rewards[:30] = 0.0
    terminations = random.random(60) < 0.1  # inside of episodes too
    episode = np.sort(random.integers(0, 4, size=60))
    found = horizon_of(*(torch.from_numpy(x) for x in (rewards, terminations, episode)))
    length, path = brute_force(rewards.tolist(), terminations, episode)
    assert found.length == pytest.approx(length, rel=1e-12)
    assert found.path == pytest.approx(path, rel=1e-12)


def test_a_part_of_the_data_is_measured_anew() -> None:
    one, rest = load(FALLING).split(0.4, seed=0)
    assert {one.spec.horizon.length, rest.spec.horizon.length} == {200.0, (200**2 + 600**2) / 800}


# -- what discounts make of survival


def test_values_of_survival() -> None:
    """The sum itself, and the numbers of two policies that differ in how often they fall."""
    survives = 0.98 * (1 - 0.002)
    assert survival_value(3.0, 0.002, 0.98) == pytest.approx(
        3 * sum(survives**t for t in range(2000))
    )
    for discount, one, two in [
        (0.99, 305, 350), (0.995, 525, 672), (0.998, 922, 1495), (0.999, 1233, 2526),
    ]:  # fmt: skip
        assert survival_value(3.65, 0.00196, discount) == pytest.approx(one, rel=0.003)
        assert survival_value(3.66, 0.00045, discount) == pytest.approx(two, rel=0.003)


def test_at_the_rate_of_the_ends_half_of_a_difference_in_survival_is_seen() -> None:
    """The derivative that the rule is chosen by, as a difference."""
    hazard = 1 / 500
    more = survival_value(1.0, hazard * 1.001, 1 - hazard)
    less = survival_value(1.0, hazard / 1.001, 1 - hazard)
    assert np.log(more / less) / np.log(1.001**2) == pytest.approx(-0.5, abs=2e-3)


def test_the_table_says_what_each_discount_sees() -> None:
    """1 / (1 - 0.998 * 0.998) = 250.25; of half as many terminations, 333.4: a third more."""
    found = Horizon(usual_share=0.001, path=None, length=500, hazard=0.002, terminated=0.9)
    assert found.table(2.0).splitlines() == [
        "discount       sees steps       value   half the terminations",
        "0.99                  100       166.9               value +9%",
        "0.995                 200       286.1              value +17%",
        "0.998                 500       500.5              value +33%",
        "0.999               1,000       667.1              value +50%",
        "horizon: 0.998        500       500.5              value +33%",
    ]
    costs = found.table(-1.0).splitlines()[1]
    assert costs.split() == ["0.99", "100", "-83.47", "value", "-9%"]
    assert "terminations" not in found.model_copy(update={"terminated": 0.0}).table(2.0)
    sparse = Horizon(usual_share=0.95, path=200, length=300, hazard=0.0, terminated=0.0)
    assert sparse.table(0.05).splitlines()[1:3] == [
        "0.99                  100           5              counts 13%",
        "0.995                 200          10              counts 37%",
    ]


def test_a_description_says_how_far_there_is_to_see() -> None:
    text = load(FALLING).describe().ahead
    assert text.splitlines()[:2] == [
        "reward         mean 1.5 per step",
        "terminations   0.002 per step, at the end of 67% of the episodes",
    ]
    assert text.splitlines()[-1] == (
        'discount "horizon" is 0.9977: 1 - 1 / 440, the steps of an episode: episodes terminate'
    )
    assert text in str(load(FALLING).describe())
    assert load(MAZE).describe().ahead.splitlines()[1:3] == [
        "terminations   none",
        "sparse         99.7% of the rows have one and the same reward",
    ]


# -- backends


@pytest.mark.parametrize("example", TRAINED, ids=lambda example: example.kind)
def test_every_backend_trains_as_with_the_number(example: Any) -> None:
    """Bit for bit, the warm start, lambda-returns and values of what is absorbed included."""
    data = load(FALLING)
    config = type(example.config)
    fields = dict(example.fields)
    if "warm_start_steps" in config.model_fields:
        fields["warm_start_steps"] = 1
    if "backup" in config.model_fields:
        fields["backup"] = "lambda_returns"
    derived, given = (
        config(**{**fields, "discount": discount}).fit(data, steps=3, seed=0, progress=False)
        for discount in ("horizon", 0.9977)
    )
    assert (derived.discount, given.discount) == (0.9977, 0.9977)
    states = derived.state(), given.state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    batch = data.sample(16, seed=1, step=0)
    if derived.has_q:
        pairs = batch.observations, batch.actions
        assert torch.equal(derived.q(*pairs), given.q(*pairs))
    other = config(**{**fields, "discount": 0.9}).fit(data, steps=3, seed=0, progress=False)
    assert not all(torch.equal(states[0][name], value) for name, value in other.state().items())
    found = derived.update(data.sample(16, seed=1, step=3), step=3)
    assert float(found["discount"]) == pytest.approx(0.9977)
    assert "discount" not in given.update(data.sample(16, seed=1, step=3), step=3)


def test_what_reads_a_backend_reads_the_number() -> None:
    data = load(FALLING)
    backend = OptiDice(discount="horizon", **dict(small.BACKENDS["optidice"])).build(data.spec)
    action = PiecewiseF(discount="horizon", **dict(small.BACKENDS["piecewise_f"])).build(data.spec)
    assert StateCorrection().build(data.spec, backend=action).discount == 0.9977
    quick = {"repetitions": 5}
    one = estimate_value(backend, data, **quick)
    assert one == estimate_value(backend, data, discount=0.9977, **quick)
    assert one != estimate_value(backend, data, discount=0.99, **quick)


def test_a_shifted_reward_is_absorbed_at_the_number() -> None:
    """Standardised, a reward of 0 for ever is worth -mean / std / (1 - gamma)."""
    data = load(FALLING)
    fields = dict(small.BACKENDS["optidice"])
    backend = OptiDice(discount="horizon", rewards="standardize", **fields).build(data.spec)
    expected = -DENSE.mean() / DENSE.std() / (1 - 0.9977)
    assert backend.absorbing_value.item() == pytest.approx(expected, rel=1e-4)


def test_other_data_are_other_training() -> None:
    """The configuration is the same, the number and the identity are not."""
    backend = PiecewiseF(discount="horizon", **dict(small.BACKENDS["piecewise_f"]))
    shorter = episodes([200, 200, 400], [True, True, False], DENSE[:800])
    parts = [(backend.build(load(a).spec), load(a)) for a in (FALLING, shorter)]
    assert [part.discount for part, _ in parts] == [0.9977, 0.9967]
    one, two = (part.identity(data) for part, data in parts)
    assert one != two
    assert PiecewiseF.model_validate_json(backend.model_dump_json()) == backend


def test_independent_transitions_have_no_horizon() -> None:
    arrays = {name: FALLING[name] for name in FALLING if name != "truncations"}
    alone = load(arrays)
    assert (alone.episode, alone.spec.horizon) == (None, None)
    assert alone.describe().ahead == ""
    with pytest.raises(ValueError, match="is read off whole episodes, and these are independent"):
        PiecewiseF(discount="horizon").build(alone.spec)


@pytest.mark.parametrize("word", ["far", "Horizon", "nan", "1.0", None, 1, -0.1, [0.9]])
def test_bad_words_are_refused_with_the_choices(word: Any) -> None:
    with pytest.raises(ValidationError, match='from 0 to below 1, or "horizon", which takes it'):
        PiecewiseF(discount=word)


def test_training_says_which_number_was_used(tmp_path: Path) -> None:
    """While it trains, in the metrics, and in the policy; the recipe keeps the word."""
    source = small.write_npz(tmp_path / "a.npz")
    recipe = small.recipe(source, backend={"discount": "horizon"}, evaluation={"episodes": 0})
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        data = recipe.data.load()
        training = Training(recipe, data, run=tmp_path / "run", progress=False, say=said.append)
        trained = training.train()
    assert said == [
        "backend: discount 0.99, 1 - 1 / 9, the steps of an episode: episodes terminate; at least "
        "0.99"
    ]
    assert trained.policy.config.notes["discount"] == "0.99"
    lines = (tmp_path / "run" / "metrics" / "backend.jsonl").read_text().splitlines()
    trained_on = [line for line in lines if '"loss' in line or '_loss"' in line]
    assert trained_on
    assert all('"discount": 0.99' in line for line in trained_on)
    assert recipe.backend.discount == "horizon"
    assert "discount" not in GivenRatio.model_fields
