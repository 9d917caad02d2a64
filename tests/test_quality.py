"""Findings: every flaw in a small dataset made by hand, the numbers of its message, and a clean
dataset that has none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from ddice import load_dataset
from ddice.cli import main
from ddice.cli.data import preset
from ddice.data.quality import CHECKS, Finding, check, row_hashes
from ddice.data.transitions import Transitions
from ddice.pictures.dataset import BINS, histograms

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")
EPISODES, LENGTH = 20, 10
ENV = "ddice-test/Walk-v0"


class Walk(gymnasium.Env[Any, Any]):
    """An environment with the spaces of these data, and a limit of 200 steps."""

    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, width: int = 3) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(self.observation_space.shape, np.float32), 0.0, False, False, {}


gymnasium.register(ENV, entry_point=f"{__name__}:Walk", max_episode_steps=200)


def arrays(**changes: Any) -> dict[str, Any]:
    """Twenty episodes of ten steps with nothing wrong: a quarter of them terminate, at different
    steps of a walk.
    """
    random = np.random.default_rng(0)
    count = EPISODES * LENGTH
    last = np.arange(count) % LENGTH == LENGTH - 1
    found = {
        "observations": random.normal(size=(count, 3)),
        "actions": random.uniform(-1, 1, size=(count, 2)),
        "rewards": random.normal(size=count),
        "terminations": np.zeros(count, bool),
        "truncations": last,
        "next_observations": np.empty((count, 3)),
    }
    found |= changes
    if "next_observations" not in changes:
        found["next_observations"] = np.roll(found["observations"], -1, 0)
    return found


def load(env: Any = ENV, **changes: Any) -> Transitions:
    """Without the environment's spaces: findings read its time limit alone."""
    data = load_dataset(arrays(**changes), action_bounds=(-1.0, 1.0), reference_scores=(0.0, 1.0))
    if env is not None:
        from ddice.data.environment import record_of

        data.spec = data.spec.model_copy(update={"env": record_of(env)})
    return data


def only(data: Transitions) -> Finding:
    found = check(data)
    assert len(found) == 1, found
    return found[0]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert check(load()) == ()


def test_constant_rewards_are_an_error() -> None:
    finding = only(load(rewards=np.full(200, 2.5)))
    assert (finding.severity, finding.name, finding.message) == (
        "error",
        "constant-rewards",
        "all 200 rewards are 2.5",
    )


def test_scale_of_rewards() -> None:
    finding = only(load(rewards=np.tile([0.0, 4000.0], 100) + np.repeat(np.arange(20.0), 10)))
    assert (finding.severity, finding.name) == ("warning", "reward-scale")
    assert finding.message == "rewards have a deviation of 2e+03 (from 0 to 4.02e+03)"
    assert only(load(rewards=1e-5 * arrays()["rewards"])).name == "reward-scale"


def test_sparse_rewards() -> None:
    rewards = np.zeros(200)
    rewards[7] = 1.0
    finding = only(load(rewards=rewards))
    assert (finding.severity, finding.name, finding.message) == (
        "note",
        "sparse-rewards",
        "only 1 of 200 rewards differ from 0",
    )


def test_equal_returns() -> None:
    finding = only(load(rewards=np.tile(np.arange(10.0), 20)))
    assert (finding.name, finding.message) == (
        "equal-returns",
        "all 20 episodes have the return 45",
    )


@pytest.mark.parametrize("known", [True, False])
def test_terminations_at_the_time_limit(known: bool) -> None:
    """Three of four terminations end after ten steps: the environment's limit, or the longest
    episode there is.
    """
    ends = np.arange(200) % 10 == 9
    terminations = np.zeros(200, bool)
    terminations[[9, 29, 49]] = True
    terminations[64] = True  # after five steps: its episode ends there
    truncations = ends & ~terminations
    data = load(env=None, terminations=terminations, truncations=truncations)
    if known:
        record = load(env=ENV).spec.env
        assert record is not None
        spec = json.loads(record.spec) | {"max_episode_steps": 10}
        data.spec = data.spec.model_copy(
            update={"env": record.model_copy(update={"spec": json.dumps(spec)})}
        )
    finding = next(finding for finding in check(data) if finding.name == "timeout-terminations")
    assert finding.severity == "warning"
    whose = f"the time limit of {ENV}" if known else "the longest episode"
    assert (
        finding.message
        == f"3 of 4 terminated episodes end exactly after 10 steps, as long as {whose}"
    )
    assert "mislabelled truncations" in finding.advice


def test_terminations_before_the_limit_are_what_they_say() -> None:
    """The limit of the environment is 200 steps: ten steps are a real end."""
    last = np.arange(200) % 10 == 9
    assert check(load(terminations=last, truncations=np.zeros(200, bool))) == ()


def test_one_long_episode() -> None:
    many = 1100
    random = np.random.default_rng(0)
    changes = {
        name: random.uniform(-1, 1, size=(many, *np.shape(value)[1:]))
        for name, value in arrays().items()
        if np.asarray(value).dtype == float
    }
    del changes["next_observations"]
    data = load(
        **changes, terminations=np.zeros(many, bool), truncations=np.arange(many) == many - 1
    )
    assert only(data).message == "all 1,100 rows are one episode"


def test_episodes_of_one_step() -> None:
    """Flags one row late: the second row of an episode ends it, and its last row stands alone."""
    truncations = np.zeros(200, bool)
    truncations[8::10] = truncations[9::10] = True
    finding = only(load(truncations=truncations))
    assert (finding.name, finding.message) == ("short-episodes", "20 of 40 episodes have one step")


def test_broken_chains() -> None:
    following = np.roll(arrays()["observations"], -1, 0)
    following[[3, 9, 15]] += 1.0  # row 9 ends its episode
    finding = only(load(next_observations=following))
    assert finding.name == "broken-chain"
    assert (
        finding.message
        == "2 next observations are not the observation of the next row of their episode, "
        "first in row 3"
    )


def test_actions() -> None:
    actions = arrays()["actions"]
    finding = only(load(actions=np.stack([actions[:, 0], np.full(200, 0.5)], 1)))
    assert (finding.name, finding.message) == (
        "constant-actions",
        "action dimensions 1 never change",
    )
    finding = only(load(actions=actions * [0.05, 1.0]))
    assert (finding.name, finding.message) == (
        "narrow-actions",
        "action dimensions 0 use less than 10% of the range between their bounds",
    )
    finding = only(
        load(
            actions=np.stack(
                [actions[:, 0], np.where(np.arange(200) % 20 == 0, 0.1, np.sign(actions[:, 1]))], 1
            )
        )
    )
    assert (finding.name, finding.message) == (
        "saturated-actions",
        "action dimensions 1 are at a bound in more than 90% of the steps",
    )


def test_observations() -> None:
    observations = arrays()["observations"]
    wider = np.concatenate([observations, np.ones((200, 12))], 1)
    finding = only(load(gymnasium.make(ENV, width=15), observations=wider))
    assert finding.severity == "note"
    assert (
        finding.message == "observation dimensions 3, 4, 5, 6, 7, 8, 9, 10 and 4 more never change"
    )
    many = np.random.default_rng(0).normal(size=(4000, 3))
    many[17, 1] = 1e4
    others = ("actions", "terminations", "truncations")
    changes = {
        name: np.resize(value, (4000, *np.shape(value)[1:]))
        for name, value in arrays().items()
        if name in others
    }
    changes["rewards"] = np.random.default_rng(1).normal(size=4000)
    finding = only(load(observations=many, **changes))
    assert (finding.name, finding.message) == (
        "observation-outliers",
        "observation dimensions 1 lie up to 63 deviations from their mean",
    )


def test_duplicates() -> None:
    clean = arrays()
    twice = {name: np.concatenate([value, value[:30]]) for name, value in clean.items()}
    found = {finding.name: finding.message for finding in check(load(**twice))}
    assert found == {
        "duplicate-rows": "30 of 230 rows are equal to an earlier one",
        "duplicate-episodes": "3 of 23 episodes are copies of another one",
    }
    swapped = {
        name: np.concatenate([value, value[1:10], value[:1]])
        for name, value in clean.items()
        if name != "next_observations"
    }
    swapped["truncations"] = np.arange(210) % 10 == 9
    found = {finding.name: finding.message for finding in check(load(**swapped))}
    assert found == {
        "duplicate-rows": "10 of 210 rows are equal to an earlier one"
    }  # the same rows in another order are no copy


def test_hashes_differ_where_rows_differ() -> None:
    """In each column, by the last bit; -0 is 0."""
    data = load(
        observations=np.ones((200, 3)), actions=np.full((200, 2), 0.5), rewards=np.ones(200)
    )
    table = data._table
    table[0, 0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    table[1, 6] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    table[2, -3] = 2.0
    table[3, -2] = 1.0
    table[4, 1], table[5, 1] = 0.0, -0.0
    assert len(np.unique(row_hashes(data))) == 6
    columns = torch.cat(
        [
            data.observations,
            data.actions,
            data.rewards[:, None],
            data.terminations[:, None].float(),
        ],
        1,
    )
    random = load()
    assert len(np.unique(row_hashes(random))) == 200
    assert len(columns.unique(dim=0)) == 6


def test_what_reading_cost_and_what_evaluation_lacks() -> None:
    alone = {name: value for name, value in arrays().items() if name != "next_observations"}
    found = {
        finding.name: finding.message
        for finding in check(load_dataset(alone, action_bounds=(-1, 1)))
    }
    assert found == {
        "dropped-rows": "20 rows were dropped: nobody wrote down what came after them",
        "no-environment": "no environment is recorded",
    }
    actions = arrays()["actions"]
    clipped = load_dataset(
        arrays(actions=actions * 1.2),
        action_bounds=(-1, 1),
        out_of_bounds="clip",
        reference_scores=(0, 1),
    )
    outside = int((np.abs(actions * 1.2) > 1).any(1).sum())
    found = {finding.name: finding.message for finding in check(clipped)}
    assert (
        found["clipped-actions"]
        == f"the actions of {outside} rows were brought inside their bounds"
    )


def test_errors_come_first() -> None:
    found = check(
        load(
            rewards=np.zeros(200),
            actions=arrays()["actions"] * [0.05, 1.0],
            observations=np.ones((200, 3)),
            env=None,
        )
    )
    assert [finding.severity for finding in found] == sorted(
        (f.severity for f in found), key=("error", "warning", "note").index
    )
    assert found[0].name == "constant-rewards"
    assert len(CHECKS) == 6


# -- the command line


def write(path: Path, **changes: Any) -> str:
    np.savez(path, **arrays(**changes))
    return str(path)


def test_check_prints_findings_and_fails_for_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = ["--action-bounds", "[-1, 1]"]
    assert main(["data", "check", write(tmp_path / "a.npz"), *bounds]) == 0
    findings, about = capsys.readouterr().out.split("\n\n", 1)
    assert findings == (
        "note     no-environment: no environment is recorded\n         -> give env= to "
        "evaluate, or estimate with ddice.ope\n0 errors, 0 warnings, 1 note"
    )
    data = load_dataset(str(tmp_path / "a.npz"), action_bounds=(-1, 1))
    assert about == f"{data.describe().ahead}\n\n{preset(data.describe())}\n"
    flawed = write(tmp_path / "b.npz", rewards=np.zeros(200))
    assert main(["data", "check", flawed, *bounds]) == 1
    assert capsys.readouterr().out.startswith(
        "error    constant-rewards: all 200 rewards are 0\n         -> no action is better"
    )
    assert main(["data", "check", flawed, *bounds, "--json"]) == 1
    assert [finding["name"] for finding in json.loads(capsys.readouterr().out)] == [
        "constant-rewards",
        "no-environment",
    ]


def test_check_explains_what_cannot_be_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards = arrays()["rewards"]
    rewards[3] = np.nan
    assert (
        main(
            [
                "data",
                "check",
                write(tmp_path / "a.npz", rewards=rewards),
                "--action-bounds",
                "[-1, 1]",
            ]
        )
        == 1
    )
    out = capsys.readouterr().out
    assert out.startswith(
        "error    unreadable: expected finite rewards, got nan in row 3; 1 of 200 rows"
    )
    assert out.endswith("1 error, 0 warnings, 0 notes\n")


def test_the_numbers_of_the_picture() -> None:
    data = load()
    found = histograms(data)
    assert found.lengths is not None
    assert found.returns is not None
    assert found.lengths.tolist() == [10] * 20
    np.testing.assert_allclose(found.returns, arrays()["rewards"].reshape(20, 10).sum(1), rtol=1e-5)
    np.testing.assert_allclose(found.actions.sum(1), 1)
    first = arrays()["actions"][:, 0].astype(np.float32)
    assert found.actions[0, 0] == pytest.approx(((first >= -1) & (first < -1 + 2 / BINS)).mean())


def test_describe_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "a.png"
    assert (
        main(
            [
                "data",
                "describe",
                write(tmp_path / "a.npz"),
                "--action-bounds",
                "[-1, 1]",
                "--plot",
                str(picture),
            ]
        )
        == 0
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.splitlines()[-1] == f"plot           {picture}"


def test_an_environment_without_reference_scores() -> None:
    data = load()
    data.spec = data.spec.model_copy(update={"reference": None})
    finding = only(data)
    assert (finding.severity, finding.name, finding.message) == (
        "note", "no-reference-scores", f"no reference scores are known for {ENV}",
    )  # fmt: skip
