from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.seeding import np_random

from ddice.core.randomness import derived_seed
from ddice.data.spec import (
    BoxActions,
    EnvRecord,
    FixedGoal,
    Normalizer,
    ObservationPart,
    Observations,
    ObservedGoal,
    ReferenceScores,
    RewardSummary,
    Spec,
)
from ddice.policies.evaluation import Evaluation, evaluate


class Lottery(gymnasium.Env[Any, Any]):
    """Every seed draws a length and a prize. Short episodes pay much, so whoever over-counts them
    is found out.

    Each step pays prize + sum(action); the step in the middle of an episode of even length reports
    success, no other does.
    """

    opened: ClassVar[list[Lottery]] = []

    def __init__(self, poison: float | None = None, silent: bool = False) -> None:
        self.observation_space = gymnasium.spaces.Dict(
            {
                "ticket": gymnasium.spaces.Box(-np.inf, np.inf, (2,)),
                "extra": gymnasium.spaces.Dict({"clock": gymnasium.spaces.Box(0, np.inf, (1,))}),
            }
        )
        self.action_space = gymnasium.spaces.Box(
            np.array([-2.0, -1.0], dtype=np.float32), np.array([2.0, 3.0], dtype=np.float32)
        )
        self.poison, self.silent, self.closed, self.steps, self.resets = poison, silent, False, 0, 0
        Lottery.opened.append(self)

    @staticmethod
    def ticket(seed: int) -> tuple[int, float]:
        """The length and the prize of a seed."""
        generator, _ = np_random(seed)
        length = int(generator.choice([2, 3, 40, 41]))
        return length, 10.0 * (length < 10) + float(generator.uniform())

    def _observe(self) -> dict[str, Any]:
        return {
            "ticket": np.array([self.prize, self.length], dtype=np.float32),
            "extra": {"clock": np.array([self.clock], dtype=np.float32)},
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        assert seed is not None
        self.length, self.prize = self.ticket(seed)
        self.clock, self.over = 0, False
        self.resets += 1
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert not self.over, "stepped past the end of an episode"
        assert action.dtype == np.float32
        self.steps += 1
        self.clock += 1
        self.over = self.clock == self.length
        reward = (
            self.prize + float(action.sum())
            if self.poison is None or self.clock < 2
            else self.poison
        )
        info = {} if self.silent else {"success": np.bool_(2 * self.clock == self.length)}
        # Half of the tickets end by termination, half by truncation.
        return (
            self._observe(),
            reward,
            self.over and self.length % 2 == 0,
            self.over and self.length % 2 == 1,
            info,
        )

    def close(self) -> None:
        self.closed = True


gymnasium.register("ddice-test/Lottery-v0", entry_point=f"{__name__}:Lottery")

SPEC = Spec(
    observations=Observations(
        parts=(
            ObservationPart(path="extra/clock", shape=(1,)),
            ObservationPart(path="ticket", shape=(2,)),
        )
    ),
    actions=BoxActions(low=(-2.0, -1.0), high=(2.0, 3.0)),
    normalizer=Normalizer(mean=(0.0,) * 3, std=(1.0,) * 3),
    env=EnvRecord(spec=gymnasium.spec("ddice-test/Lottery-v0").to_json()),
    reference=ReferenceScores(random=10.0, expert=60.0, source="Minari"),
    rewards=RewardSummary(mean=0.0, std=1.0, positive_share=0.5),
    transitions=1,
    episodes=1,
    source_rows=1,
    has_initial=True,
    fingerprint="0" * 32,
    behaviour_fingerprint="0" * 32,
)


def chosen(clock: float, prize: float, seed: int | None) -> np.ndarray:
    """What the stand-in policy does in one state: a known function of the state and of its own
    seed.
    """
    noise = 0.0 if seed is None else np.random.default_rng(seed).uniform(-0.5, 0.5)
    return np.array([noise + 0.01 * float(clock), 0.1 * float(prize)], dtype=np.float32)


@dataclasses.dataclass
class StandIn:
    """A policy with a spec and `act`, and nothing else."""

    spec: Spec = SPEC
    batches: list[int] = dataclasses.field(default_factory=list)

    def act(
        self, observation: Any, deterministic: bool = False, seed: int | Sequence[int] | None = None
    ) -> np.ndarray:
        flat = self.spec.observations.flatten(observation)
        assert flat.ndim == 2
        self.batches.append(len(flat))
        assert deterministic == (seed is None)
        seeds = [None] * len(flat) if seed is None else list(seed)  # type: ignore[arg-type]
        return np.stack([chosen(row[0], row[1], one) for row, one in zip(flat, seeds, strict=True)])


def expected(
    episodes: int, seed: int, deterministic: bool = False
) -> list[tuple[int, float, bool]]:
    """Length, return and success of every episode, without the code under test."""
    answers = []
    for index in range(episodes):
        length, prize = Lottery.ticket(derived_seed(seed, "environment", index))
        total = 0.0
        for step in range(length):
            action = chosen(
                step,
                np.float32(prize),
                None if deterministic else derived_seed(seed, "policy", index, step),
            )
            total += prize + float(action.sum())
        answers.append((length, total, length % 2 == 0))
    return answers


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Lottery.opened.clear()


@pytest.mark.parametrize("parallel", [1, 7, 50])
@pytest.mark.parametrize("deterministic", [False, True])
def test_every_episode_has_the_known_length_return_and_success(
    parallel: int, deterministic: bool
) -> None:
    policy = StandIn()
    result = evaluate(
        policy, episodes=30, seed=5, parallel=parallel, deterministic=deterministic, progress=False
    )
    answers = expected(30, 5, deterministic)
    assert result.lengths == tuple(length for length, _, _ in answers)
    assert result.returns == tuple(total for _, total, _ in answers)
    assert result.successes == tuple(success for _, _, success in answers)
    assert result.final_successes == (False,) * 30
    assert result.success_rate == np.mean(result.successes)
    # No junk transition, no episode begun in vain, every copy closed.
    assert sum(env.steps for env in Lottery.opened) == sum(result.lengths)
    assert sum(env.resets for env in Lottery.opened) == 30
    assert len(Lottery.opened) == 30  # every episode has its own copy
    assert all(env.closed for env in Lottery.opened)
    assert max(policy.batches) == min(parallel, 30)
    # Taking the first 30 episodes to finish in self-resetting copies would count the short, rich
    # ones more often than this.
    assert len(set(result.lengths)) == 4


def test_results_are_the_same_for_one_and_for_seven_copies() -> None:
    alone, together = (
        evaluate(StandIn(), episodes=20, seed=1, parallel=parallel, progress=False)
        for parallel in (1, 7)
    )
    measured = {"seconds", "policy_seconds"}
    assert alone.model_dump(exclude=measured) == together.model_dump(exclude=measured)
    assert alone.returns != evaluate(StandIn(), episodes=20, seed=2, progress=False).returns
    # More episodes begin with the same ones.
    assert evaluate(StandIn(), episodes=25, seed=1, progress=False).returns[:20] == alone.returns


def test_scores_follow_the_references_and_the_label_says_whose() -> None:
    result = evaluate(StandIn(), episodes=10, progress=False)
    assert result.scores == pytest.approx([100 * (total - 10) / 50 for total in result.returns])
    assert result.label == "normalised by Minari's references, random 10, expert 60"
    assert result.mean == pytest.approx(np.mean(result.scores))
    assert result.std == pytest.approx(np.std(result.scores, ddof=1))
    assert result.iqm == pytest.approx(np.mean(sorted(result.scores)[2:8]))
    low, high = result.interval()
    assert low < result.mean < high
    users = SPEC.model_copy(
        update={"reference": ReferenceScores(random=0.0, expert=1.0, source="user")}
    )
    assert evaluate(StandIn(users), episodes=1, progress=False).label.startswith(
        "normalised by the user's references"
    )
    bundled = SPEC.model_copy(
        update={"reference": ReferenceScores(random=0.0, expert=1.0, source="bundled table: X")}
    )
    assert evaluate(StandIn(bundled), episodes=1, progress=False).label.startswith(
        "normalised by bundled table: X"
    )
    raw = evaluate(StandIn(SPEC.model_copy(update={"reference": None})), episodes=4, progress=False)
    assert raw.label == "raw returns: no reference scores are known for ddice-test/Lottery-v0"
    assert raw.scores == raw.returns


def test_result_reads_well_and_survives_json() -> None:
    result = evaluate(StandIn(), episodes=8, progress=False)
    again = Evaluation.model_validate_json(result.model_dump_json())
    assert again == result
    text = str(result)
    for words in (
        "ddice-test/Lottery-v0: 8 episodes, seed 0",
        f"{result.mean:.2f}",
        "IQM",
        "Minari's references",
        "success",
        "decisions/s",
    ):
        assert words in text
    assert result.decisions_per_second == pytest.approx(sum(result.lengths) / result.policy_seconds)
    silent = evaluate(StandIn(), lambda: Lottery(silent=True), episodes=2, progress=False)
    assert silent.successes is silent.final_successes is silent.success_rate is None
    assert "success not reported (no success, is_success, goal_achieved," in str(silent)


@pytest.mark.parametrize("kind", ["id", "spec", "record", "function", "class"])
def test_an_environment_given_in_any_form_plays_the_same_episodes(kind: str) -> None:
    spec = gymnasium.spec("ddice-test/Lottery-v0")
    given = {
        "id": spec.id,
        "spec": spec,
        "record": SPEC.env,
        "function": lambda: gymnasium.make(spec.id),
        "class": Lottery,
    }[kind]
    assert evaluate(
        StandIn(SPEC.model_copy(update={"env": None})), given, episodes=5, progress=False
    ).returns == tuple(a[1] for a in expected(5, 0))  # type: ignore[arg-type]


def test_a_ready_made_environment_is_played_alone_and_left_open() -> None:
    env = gymnasium.make("ddice-test/Lottery-v0")
    assert evaluate(StandIn(), env, episodes=5, progress=False).returns == tuple(
        total for _, total, _ in expected(5, 0)
    )
    assert [one.closed for one in Lottery.opened] == [False]


def test_references_of_another_environment_do_not_apply() -> None:
    other = EnvRecord(spec=EnvSpec("ddice-test/Other-v0", entry_point="nowhere:Env").to_json())
    result = evaluate(
        StandIn(SPEC.model_copy(update={"env": other})),
        "ddice-test/Lottery-v0",
        episodes=2,
        progress=False,
    )
    assert result.label == "raw returns: no reference scores are known for ddice-test/Lottery-v0"


def _changed(**fields: Any) -> StandIn:
    return StandIn(SPEC.model_copy(update=fields))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            _changed(
                observations=Observations(parts=(ObservationPart(path="ticket", shape=(3,)),))
            ),
            r"\['ticket'\] of shape \(3,\)",
        ),
        (
            _changed(observations=Observations(parts=(ObservationPart(path="", shape=(3,)),))),
            r"observation of shape \(3,\)",
        ),
        (
            _changed(actions=BoxActions(low=(-1.0,), high=(1.0,))),
            r"actions of shape \(1,\).*got \(2,\)",
        ),
        (
            _changed(actions=BoxActions(low=(-2.0, -2.0), high=(2.0, 3.0))),
            "another version, or wrapped",
        ),
        (_changed(env=None), "give env="),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(policy: StandIn, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(policy, episodes=2, progress=False)
    assert all(env.closed and not env.resets for env in Lottery.opened)


def test_narrower_actions_than_those_of_the_environment_are_fine() -> None:
    assert (
        len(
            evaluate(
                _changed(actions=BoxActions(low=(-1.0, -1.0), high=(1.0, 1.0))),
                episodes=2,
                progress=False,
            ).returns
        )
        == 2
    )


def test_unusable_environments_are_named() -> None:
    with pytest.raises(TypeError, match="VectorEnv"):
        evaluate(StandIn(), gymnasium.make_vec("CartPole-v1", 2), progress=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected env to make a gymnasium\.Env, got int"):
        evaluate(StandIn(), lambda: 3, progress=False)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="Nowhere-v0"):
        evaluate(StandIn(), "Nowhere-v0", progress=False)
    with pytest.raises(ValueError, match=r"continuous action space.*Discrete\(2\)"):
        evaluate(
            _changed(observations=Observations(parts=(ObservationPart(path="", shape=(4,)),))),
            "CartPole-v1",
            progress=False,
        )
    with pytest.raises(ValueError, match="at least one episode"):
        evaluate(StandIn(), episodes=0)
    absent = EnvRecord(
        spec=EnvSpec("Absent-v0", entry_point="package_that_is_not_there:Env").to_json()
    )
    with pytest.raises(ImportError, match=r"ddice\[robotics\]"):
        evaluate(_changed(env=absent), progress=False)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_stop_the_evaluation(poison: float) -> None:
    with pytest.raises(
        ValueError, match=rf"expected finite rewards, got {poison}.*\(episode 0, step 1\)"
    ):
        evaluate(StandIn(), lambda: Lottery(poison=poison), episodes=3, progress=False)
    assert len(Lottery.opened) == 3
    assert all(env.closed for env in Lottery.opened)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda rows: np.full((rows, 2), np.nan), ValueError, "expected finite actions"),
        (
            lambda rows: np.zeros((2, rows)),
            ValueError,
            r"expected actions of shape \(3, 2\) from the policy, got \(2, 3\)",
        ),
        (lambda rows: (_ for _ in ()).throw(KeyboardInterrupt), KeyboardInterrupt, None),
    ],
)
def test_environments_are_closed_whatever_the_policy_does(
    answer: Any, error: type[BaseException], message: str | None
) -> None:
    class Broken(StandIn):
        def act(
            self,
            observation: Any,
            deterministic: bool = False,
            seed: int | Sequence[int] | None = None,
        ) -> np.ndarray:
            return answer(len(observation["ticket"]))  # type: ignore[no-any-return]

    with pytest.raises(error, match=message):
        evaluate(Broken(), episodes=3, progress=False)
    assert [env.closed for env in Lottery.opened] == [True] * 3


def _pointmaze(view: FixedGoal | ObservedGoal) -> Spec:
    pytest.importorskip("gymnasium_robotics")
    from ddice.collection import pointmaze_evaluation_spec

    return SPEC.model_copy(
        update={
            "observations": Observations(parts=(ObservationPart(path="observation", shape=(4,)),)),
            "actions": BoxActions(low=(-1.0, -1.0), high=(1.0, 1.0)),
            "env": EnvRecord(spec=pointmaze_evaluation_spec("umaze")),
            "reference": ReferenceScores(random=10.1, expert=210.4, source="Minari"),
            "view": view,
        }
    )


class Homing(StandIn):
    """Pushes to the left and brakes: along the upper corridor that ends at the goal cell."""

    def act(
        self, observation: Any, deterministic: bool = False, seed: int | Sequence[int] | None = None
    ) -> np.ndarray:
        state = self.spec.observations.flatten(observation)
        return np.clip(5 * (np.array([-1.0, 1.0]) - state[:, :2]) - state[:, 2:], -1, 1).astype(
            np.float32
        )


def test_pointmaze_is_played_the_same_alone_and_together_and_leaves_no_files(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    policy = Homing(_pointmaze(FixedGoal(goal=(-1.0, 1.0), radius=0.45)))
    alone, together = (
        evaluate(policy, episodes=12, parallel=parallel, progress=False) for parallel in (1, 5)
    )
    assert alone.returns == together.returns
    assert alone.lengths == (300,) * 12
    # Three of the six possible start cells lie in the corridor: from there the goal is reached and
    # held, from the others never.
    assert {True, False} == set(alone.successes or ())
    assert all(
        (total > 100) == success
        for total, success in zip(alone.returns, alone.successes or (), strict=True)
    )
    assert list(tmp_path.iterdir()) == []


def test_a_policy_for_one_goal_is_not_played_where_goals_differ() -> None:
    policy = Homing(_pointmaze(FixedGoal(goal=(-1.0, 1.0), radius=0.45)))
    with pytest.raises(
        ValueError,
        match=r"the one goal that the policy was trained for, \(-1.0, 1.0\), got 7 goal locations",
    ):
        evaluate(policy, "PointMaze_UMaze-v3", episodes=1, progress=False)
    assert (
        len(
            evaluate(
                Homing(_pointmaze(ObservedGoal())), "PointMaze_UMaze-v3", episodes=1, progress=False
            ).returns
        )
        == 1
    )
