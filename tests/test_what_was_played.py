"""What an evaluation says is what was played: whatever environments remember, write into again,
report or leave out. Every answer is known by hand.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers

import ddice
from ddice.data.environment import record_of
from ddice.data.memory import memory_of, recorded_memory, reward_layers
from ddice.data.quality import check
from ddice.data.spec import EnvRecord, ReferenceScores, Spec
from ddice.data.trial import require_playable, try_environment
from ddice.pictures import record
from ddice.policies.evaluation import Moment, evaluate, evaluate_pair, paired

STEPS = 4


class Plain(gymnasium.Env[Any, Any]):
    """Four steps; observation and reward count them. Options make it misbehave."""

    observation_space = gymnasium.spaces.Box(-99, 99, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, fault: str = "", scale: float = 1.0) -> None:
        self.fault, self.scale, self.episode = fault, scale, -1
        self.buffer = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode += 1
        self.count = 0
        self.buffer[:] = 0
        return (self.buffer, {}) if self.fault != "old reset" else self.buffer

    def step(self, action: Any) -> Any:
        self.count += 1
        self.buffer += 1
        reward: Any = self.scale * self.count
        if self.fault == "counts episodes":
            reward += 100 * self.episode
        if self.fault == "writes":
            action *= 0
        over = self.count == STEPS
        info = {"cost": np.array([self.count]), "buffer": self.buffer}
        rewards = {"column": np.array([reward]), "two": np.ones(2), "text": "much"}
        reward = rewards.get(self.fault, reward)
        if self.fault == "old step":
            return self.buffer, reward, over, info
        if self.fault == "raises":
            raise RuntimeError("the wheels came off")
        return self.buffer, reward, over and self.fault != "endless", False, info


gymnasium.register("ddice-test/Plain-v0", entry_point=f"{__name__}:Plain", max_episode_steps=50)


def data_of(env: Any = "ddice-test/Plain-v0", **options: Any) -> Any:
    n = np.arange(20.0)
    arrays = {
        "observations": n[:, None],
        "actions": np.sin(n)[:, None],
        "rewards": n,
        "terminations": n % 5 == 4,
        "truncations": n < 0,
    }
    return ddice.load_dataset(arrays, env=env, action_bounds=(-1, 1), **options)


class Still:
    """The action 0, whatever is seen."""

    def __init__(self, spec: Spec, action: float = 0.0) -> None:
        self.spec, self.action = spec, action

    def act(self, observation: Any, deterministic: bool = False, seed: Any = None) -> Any:
        return np.full((len(observation), 1), self.action)


def still(env: Any = "ddice-test/Plain-v0", **options: Any) -> Still:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Still(data_of(env, **options).spec)


# -- what environments remember


def test_what_an_environment_remembers_never_reaches_another_episode() -> None:
    """It pays 100 more in every episode after its first: each returns 1 + 2 + 3 + 4 = 10."""
    for parallel in (1, 3, 8):
        result = evaluate(
            still(),
            lambda: Plain("counts episodes"),
            episodes=8,
            parallel=parallel,
            progress=False,
        )
        assert result.returns == (10.0,) * 8


@pytest.mark.parametrize("wrapper", [wrappers.NormalizeReward, wrappers.NormalizeObservation])
def test_running_statistics_are_named_everywhere_and_begin_anew(wrapper: Any) -> None:
    name = wrapper.__name__
    env = wrapper(gymnasium.make("ddice-test/Plain-v0"))
    with pytest.warns(UserWarning, match=f"wrapped in {name}, whose running statistics"):
        data = data_of(env)
    assert recorded_memory(data.spec.env) == (name,)
    assert name in " ".join(f.message for f in check(data) if f.name == "environment")
    with pytest.warns(UserWarning, match=f"wrapped in {name}"):
        require_playable(data.spec)
    one, three = (
        evaluate(Still(data.spec), episodes=6, parallel=parallel, progress=False)
        for parallel in (1, 3)
    )
    assert one.returns == three.returns == (one.returns[0],) * 6
    assert f"the statistics of {name} begin anew in every episode" in one.label
    assert ("rewards as NormalizeReward changes them" in one.label) == (name == "NormalizeReward")


def test_normalised_rewards_are_not_scored_by_references_of_raw_ones() -> None:
    """The user's own references are the user's word; those of a dataset belong to its task."""
    policy = still()
    policy.spec = policy.spec.model_copy(
        update={"reference": ReferenceScores(random=0.0, expert=10.0, source="Minari")}
    )
    assert evaluate(policy, episodes=1, progress=False).scores == (100.0,)
    wrapped = lambda: wrappers.NormalizeReward(gymnasium.make("ddice-test/Plain-v0"))  # noqa: E731
    result = evaluate(policy, wrapped, episodes=1, progress=False)
    assert result.reference is None
    assert result.scores == result.returns
    scaled = lambda: gymnasium.make("ddice-test/Plain-v0", scale=2.0)  # noqa: E731
    twice = evaluate(policy, scaled, episodes=1, progress=False)
    assert (twice.returns, twice.reference) == ((20.0,), None)
    shorter = lambda: gymnasium.make("ddice-test/Plain-v0", max_episode_steps=2)  # noqa: E731
    short = evaluate(policy, shorter, episodes=1, progress=False)
    assert (short.returns, short.reference) == ((3.0,), None)


def test_a_ready_made_environment_that_remembers_is_refused_until_it_is_frozen() -> None:
    env = wrappers.NormalizeReward(gymnasium.make("ddice-test/Plain-v0"))
    assert memory_of(env) == reward_layers(env) == ("NormalizeReward",)
    with pytest.raises(ValueError, match="remembers: NormalizeReward keeps running statistics"):
        evaluate(still(), env, episodes=2, progress=False)
    env.update_running_mean = False
    assert memory_of(env) == ()
    returns = evaluate(still(), env, episodes=2, progress=False).returns
    assert returns == pytest.approx([10.0, 10.0])  # a variance of 1, never updated


def test_a_function_that_gives_the_same_environment_again_is_refused() -> None:
    env = Plain()
    for parallel in (1, 2):
        with pytest.raises(TypeError, match="got the same one twice"):
            evaluate(still(), lambda: env, episodes=3, parallel=parallel, progress=False)


# -- what is handed out by reference


def test_observations_actions_and_infos_are_what_they_were() -> None:
    seen: list[Moment] = []
    policy = still()
    policy.action = 0.5
    evaluate(policy, lambda: Plain("writes"), episodes=1, progress=False, on_step=seen.append)
    assert [float(m.observation[0]) for m in seen] == [0, 1, 2, 3]
    assert [float(m.next_observation[0]) for m in seen] == [1, 2, 3, 4]
    assert [float(m.action[0]) for m in seen] == [0.5] * 4
    assert [int(m.info["cost"][0]) for m in seen] == [1, 2, 3, 4]
    assert [float(m.info["buffer"][0]) for m in seen] == [1, 2, 3, 4]
    _, recordings = record(policy, Plain, episodes=1, progress=False)
    assert [float(o[0]) for o in recordings[0].observations] == [0, 1, 2, 3, 4]


def test_a_cost_can_be_added_up_for_every_episode() -> None:
    costs = [0, 0, 0]

    def add(moment: Moment) -> None:
        costs[moment.episode] += int(moment.info["cost"][0])

    evaluate(still(), episodes=3, progress=False, on_step=add)
    assert costs == [10, 10, 10]


# -- rewards, steps and bounds


def test_an_array_of_one_number_is_a_reward_and_others_are_refused() -> None:
    play = {"episodes": 1, "progress": False}
    assert evaluate(still(), lambda: Plain("column"), **play).returns == (10.0,)
    with pytest.raises(ValueError, match=r"one number as reward, got shape \(2,\).*step 0"):
        evaluate(still(), lambda: Plain("two"), **play)
    with pytest.raises(ValueError, match="one number as reward, got 'much'"):
        evaluate(still(), lambda: Plain("text"), **play)


@pytest.mark.filterwarnings("ignore")  # Gymnasium's own words, in its own place
@pytest.mark.parametrize("made", [False, True])
def test_the_old_step_and_the_old_reset_are_named(made: bool) -> None:
    def build(fault: str) -> Any:
        return gymnasium.make("ddice-test/Plain-v0", fault=fault) if made else Plain(fault)

    old = "four values, with one done, are the step of Gym before"
    with pytest.raises(ValueError, match=old):
        evaluate(still(), lambda: build("old step"), episodes=1, progress=False)
    with pytest.raises(ValueError, match=r"reset|observation, info"):
        evaluate(still(), lambda: build("old reset"), episodes=1, progress=False)


def test_what_fails_is_named_with_its_place() -> None:
    with pytest.raises(
        ValueError, match=r"failed with RuntimeError: the wheels came off \(episode 0, step 0\)"
    ):
        evaluate(still(), lambda: Plain("raises"), episodes=1, progress=False)


def test_an_episode_without_an_end_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match=r"does not end within 30 steps.*max_episode_steps"):
        evaluate(
            still(), lambda: Plain("endless"), episodes=1, max_episode_steps=30, progress=False
        )
    # as long as is allowed is no error
    assert evaluate(still(), max_episode_steps=4, episodes=1, progress=False).lengths == (4,)


class Strict(Plain):
    """Bounds that float32 does not hold; actions outside of them are an error, and are kept."""

    action_space = gymnasium.spaces.Box(-0.1, 0.3, (1,), np.float64)

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        return super().step(action)


def test_actions_stay_within_bounds_of_float64() -> None:
    policy = still(None)
    for bound in (-0.1, 0.3):
        policy.action = float(np.float32(bound))
        assert evaluate(policy_within(policy), Strict, episodes=1, progress=False).lengths == (4,)
    policy.action = 0.4
    with pytest.raises(ValueError, match=r"actions within .* got \[0.4\]: clip them"):
        evaluate(policy_within(policy), Strict, episodes=1, progress=False)


def policy_within(policy: Still) -> Still:
    """With a spec whose actions fit `Strict`."""
    actions = policy.spec.actions.model_copy(update={"low": (-0.1,), "high": (0.3,)})
    return Still(policy.spec.model_copy(update={"actions": actions}), policy.action)


# -- success


class Reporting(Plain):
    """Says what it is told to, one info a step; episode i, by its seed, says `says[i]`."""

    def __init__(self, says: list[list[dict[str, Any]]]) -> None:
        super().__init__()
        self.says = says

    def step(self, action: Any) -> Any:
        observation, reward, over, cut, _ = super().step(action)
        return observation, reward, over, cut, self.says[self.count - 1]


YES, NO, NOTHING = {"success": True}, {"success": False}, dict[str, Any]()


@pytest.mark.parametrize(
    ("episodes", "ever", "final"),
    [
        # said in every step
        ([[NO, YES, NO, NO], [NO] * 4], (True, False), (False, False)),
        # said only where it is true
        ([[NOTHING, YES, NOTHING, NOTHING], [NOTHING] * 4], (True, False), (False, False)),
        ([[NOTHING] * 3 + [YES], [NOTHING] * 4], (True, False), (True, False)),
        # said at the end alone
        ([[NOTHING] * 3 + [YES], [NOTHING] * 3 + [NO]], (True, False), (True, False)),
        # under other names, as numbers, as arrays, with NaN and None for "nothing to say"
        (
            [[{"goal_achieved": np.bool_(True)}] * 4, [{"goal_achieved": 0}] * 4],
            (True, False),
            None,
        ),
        ([[{"is_success": np.array([1.0])}] * 4, [{"is_success": 0.0}] * 4], (True, False), None),
        ([[{"success": float("nan")}] * 3 + [YES], [NO] * 4], (True, False), (True, False)),
        ([[{"success": None, "is_success": True}] * 4, [NO] * 4], (True, False), None),
    ],
)
def test_success_is_what_was_reported(episodes: Any, ever: Any, final: Any) -> None:
    made = iter(episodes)
    result = evaluate(
        still(), lambda: Reporting(next(made)), episodes=len(episodes), parallel=1, progress=False
    )
    assert result.successes == ever
    assert result.final_successes == (ever if final is None else final)
    assert result.success_note is None
    assert "success 50 %" in str(result)


@pytest.mark.parametrize(
    ("episodes", "note"),
    [
        ([[NOTHING] * 4] * 2, "not reported (no success, is_success, goal_achieved"),
        ([[{"success": float("nan")}] * 4] * 2, "not reported"),
        ([[NO] * 4, [NOTHING] * 4, [YES] * 4], "reported in 2 of 3 episodes only"),
        ([[{"success": 0.3}] * 4, [YES] * 4], "reported as success = 0.3, expected true or false"),
        ([[{"success": "no"}] * 4, [YES] * 4], "reported as success = 'no'"),
    ],
)
def test_a_rate_that_nobody_can_know_is_absent_with_its_reason(episodes: Any, note: str) -> None:
    made = iter(episodes)
    result = evaluate(
        still(), lambda: Reporting(next(made)), episodes=len(episodes), parallel=1, progress=False
    )
    assert result.successes is result.final_successes is result.success_rate is None
    assert note in (result.success_note or "")
    assert f"success {note}" in str(result)


# -- environments found and tried


def test_an_id_with_its_module_is_taken_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "import gymnasium\ngymnasium.register('Own-v3', max_episode_steps=3, "
        "entry_point='gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    (tmp_path / "own_tasks.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = record_of("own_tasks:Own-v3")
    assert (loaded.id, loaded.time_limit) == ("Own-v3", 3)
    arrays = {
        "observations": np.random.default_rng(0).normal(size=(6, 3)),
        "actions": np.zeros((6, 1)),
        "rewards": np.arange(6.0),
        "terminations": np.arange(6) % 3 == 2,
        "truncations": np.zeros(6),
    }
    spec = ddice.load_dataset(arrays, env="own_tasks:Own-v3").spec
    assert spec.env == loaded
    result = evaluate(Still(spec), "own_tasks:Own-v3", episodes=1, progress=False)
    assert (result.env_id, result.lengths) == ("Own-v3", (3,))
    with pytest.raises(ValueError, match="No module named 'not_there'"):
        record_of("not_there:Own-v3")


def absent(spec: Spec) -> Spec:
    fields = {**json.loads(gymnasium.spec("ddice-test/Plain-v0").to_json())}
    return spec.model_copy(
        update={"env": EnvRecord(spec=json.dumps({**fields, "entry_point": "gone:Env"}))}
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (absent, ImportError, "No module named 'gone'"),
        (
            lambda spec: spec.model_copy(update={"env": record_of("Pendulum-v1")}),
            ValueError,
            r"observation of shape \(1,\)",
        ),
        (
            lambda spec: spec.model_copy(
                update={"env": record_of(gymnasium.make("ddice-test/Plain-v0", fault="raises"))}
            ),
            ValueError,
            "the wheels came off",
        ),
    ],
)
def test_an_environment_that_will_not_do_is_found_before_training(
    change: Any, error: type[Exception], message: str
) -> None:
    data = data_of(reference_scores=(0.0, 1.0))
    data.spec = change(data.spec)
    with pytest.raises(error, match=message):
        try_environment(data.spec)
    found = [one for one in check(data) if one.name == "unusable-environment"]
    assert [one.severity for one in found] == ["error"]

    from ddice.dice_backends import PiecewiseF
    from ddice.extractors import GaussianBC
    from ddice.runs.recipe import Recipe
    from ddice.runs.training import Training

    recipe = Recipe(backend=PiecewiseF(), extractor=GaussianBC(), device="cpu")
    with pytest.raises(error, match=message):
        Training(recipe, data, progress=False).check()
    alone = recipe.model_copy(
        update={"evaluation": recipe.evaluation.model_copy(update={"episodes": 0})}
    )
    Training(alone, data, progress=False).check()  # nothing is to be played


def test_an_environment_without_a_time_limit_is_named() -> None:
    gymnasium.register("ddice-test/Endless-v0", entry_point=f"{__name__}:Plain")
    with pytest.warns(UserWarning, match="ddice-test/Endless-v0 has no time limit"):
        require_playable(data_of("ddice-test/Endless-v0").spec)
    assert try_environment(data_of().spec) == ()


# -- references of the dataset


def test_the_references_of_a_dataset_do_not_follow_it_into_another_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    from ddice.data.minari_writer import write_dataset

    write_dataset(
        "test/plain-v0",
        [
            {
                "observations": np.arange(5.0, dtype=np.float32)[:, None],
                "actions": np.zeros((4, 1), np.float32),
                "rewards": np.arange(1.0, 5.0),
                "terminations": np.arange(4) == 3,
                "truncations": np.zeros(4, bool),
            }
        ],
        env_spec_json=record_of("ddice-test/Plain-v0").spec,
        eval_env_spec_json=None,
        reference_scores=ReferenceScores(random=1.0, expert=10.0, source="a table of ours"),
        description="made by hand",
        algorithm="none",
    )
    own = ddice.load_dataset("test/plain-v0").spec.reference
    assert own == ReferenceScores(random=1.0, expert=10.0, source="a table of ours")
    again = ddice.load_dataset("test/plain-v0").spec.reference  # from the cache
    assert again == own
    same = ddice.load_dataset("test/plain-v0", env="ddice-test/Plain-v0").spec.reference
    assert same == own
    scaled = gymnasium.make("ddice-test/Plain-v0", scale=3.0)
    assert ddice.load_dataset("test/plain-v0", env=scaled).spec.reference is None


# -- pairs


class Push(Still):
    """The return of `Lucky` from these starts is known: start + 4 actions."""


class Lucky(Plain):
    """The seed of a reset is worth a number, much larger than what actions are worth."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        answer = super().reset(seed=seed)
        self.luck = float(self.np_random.normal(0, 1000))
        return answer

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        luck = self.luck if self.count == 1 else 0.0
        return observation, luck + float(action[0]), *rest


gymnasium.register("ddice-test/Lucky-v0", entry_point=f"{__name__}:Lucky", max_episode_steps=50)


def test_pairs_leave_the_luck_of_the_start_out() -> None:
    spec = still("ddice-test/Lucky-v0").spec
    pair = evaluate_pair(Push(spec, 0.75), Push(spec, 0.5), episodes=20, progress=False)
    assert np.std(pair.first.returns) > 100
    assert pair.differences == pytest.approx([1.0] * 20)  # four steps of 0.25
    assert pair.mean == pytest.approx(1.0)
    assert pair.interval() == pytest.approx((1.0, 1.0))
    assert pair.better == 1.0
    assert "first - second, 20 pairs with the same starts: 1.00 [1.00, 1.00], better in 100 %" in (
        str(pair)
    )
    assert paired(pair.second, pair.first).mean == pytest.approx(-1.0)
    assert paired(pair.first, pair.first).better == 0.5


def test_what_was_not_played_from_the_same_starts_is_no_pair() -> None:
    spec = still("ddice-test/Lucky-v0").spec
    one = evaluate(Push(spec), episodes=2, progress=False)
    for other, message in (
        (evaluate(Push(spec), episodes=2, seed=1, progress=False), "same seed, got 0 and 1"),
        (evaluate(Push(spec), episodes=3, progress=False), "as many episodes, got 2 and 3"),
        (evaluate(still(), episodes=2, progress=False), "same env_id"),
    ):
        with pytest.raises(ValueError, match=message):
            paired(one, other)
    with pytest.raises(ValueError, match="two policies of the same environment"):
        evaluate_pair(Push(spec), still(), episodes=1, progress=False)


def test_pairs_with_different_references_are_compared_by_their_returns() -> None:
    ours = still("ddice-test/Lucky-v0", reference_scores=(0.0, 10.0))
    theirs = still("ddice-test/Lucky-v0", reference_scores=(0.0, 20.0))
    ours.action = 0.5
    pair = evaluate_pair(ours, theirs, episodes=3, progress=False)
    assert pair.differences == pytest.approx([2.0] * 3)
    assert "different references" in pair.label
