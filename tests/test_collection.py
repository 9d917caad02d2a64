from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium_robotics")

import gymnasium
from gymnasium.envs.registration import EnvSpec

from ddice.collection import (
    WaypointController,
    make_pointmaze,
    pointmaze,
    pointmaze_evaluation_spec,
    pointmaze_id,
    solve_maze,
)
from ddice.data.scores import BUNDLED, POINTMAZE_REFERENCES, bundled_reference, why_not_bundled
from ddice.data.spec import EnvRecord

STEPS = 20_000
LOOP = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]


@pytest.fixture(scope="module")
def umaze(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A short umaze set as Minari reads it; making it a second time does not so much as make an
    environment.
    """
    import minari

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        dataset_id = make_pointmaze("umaze", steps=STEPS, progress=False)
        with pytest.MonkeyPatch.context() as second_call:
            second_call.setattr(
                gymnasium,
                "make",
                lambda *_args, **_kwargs: pytest.fail("the dataset was there already"),
            )
            assert make_pointmaze("umaze", steps=STEPS, progress=False) == dataset_id
        dataset = minari.load_dataset(dataset_id)
        yield dataset, list(dataset.iterate_episodes())


def test_every_recorded_transition_replays_in_the_environment(umaze: Any) -> None:
    dataset, episodes = umaze
    env = gymnasium.make(EnvSpec.from_json(dataset.storage.metadata["env_spec"]))
    observation, _ = env.reset(seed=123)
    for number, episode in enumerate(episodes):
        for key, values in episode.observations.items():
            np.testing.assert_array_equal(values[0], observation[key])
        for step, action in enumerate(episode.actions):
            observation, reward, terminated, _, info = env.step(action)
            for key, values in episode.observations.items():
                np.testing.assert_array_equal(values[step + 1], observation[key])
            assert reward == episode.rewards[step]
            assert not terminated
            assert bool(episode.truncations[step]) == (
                info["success"] or (number, step) == (len(episodes) - 1, len(episode.actions) - 1)
            )
    env.close()


def test_episodes_end_at_success_and_join_without_a_gap_or_a_reset(umaze: Any) -> None:
    dataset, episodes = umaze
    assert sum(len(episode.actions) for episode in episodes) == dataset.total_steps == STEPS
    for before, after in itertools.pairwise(episodes):
        for key, values in before.observations.items():
            np.testing.assert_array_equal(values[-1], after.observations[key][0])
        assert before.rewards[-1] == 1
        assert before.rewards[:-1].sum() == 0
        # Where the goal was reached by the next position, the reward says so; the cut is a
        # truncation.
        assert (
            math.dist(
                before.observations["achieved_goal"][-1], before.observations["desired_goal"][-1]
            )
            <= 0.45
        )
        assert before.truncations.tolist() == [False] * (len(before.actions) - 1) + [True]
    assert not any(episode.terminations.any() for episode in episodes)
    for episode in episodes:
        np.testing.assert_array_equal(
            episode.observations["observation"][:, :2], episode.observations["achieved_goal"]
        )
        # One force step of 0.01 s moves the point by at most 5 * 0.01 plus the step's own
        # acceleration.
        assert np.abs(np.diff(episode.observations["achieved_goal"], axis=0)).max(initial=0) < 0.1


def test_actions_are_the_noisy_controller_of_the_recipe(umaze: Any) -> None:
    dataset, episodes = umaze
    env = gymnasium.make(EnvSpec.from_json(dataset.storage.metadata["env_spec"]))
    controller, residuals = WaypointController(env.unwrapped.maze), []
    for episode in episodes:
        for state, goal, action in zip(
            episode.observations["observation"],
            episode.observations["desired_goal"],
            episode.actions,
            strict=False,
        ):
            wanted = np.array(controller.act(state.tolist(), tuple(goal.tolist())))
            inside = np.abs(action) < 1
            residuals.extend((action - wanted)[inside & (np.abs(wanted) < 0.2)])
    env.close()
    assert all(
        episode.actions.dtype == np.float32 and np.abs(episode.actions).max() <= 1
        for episode in episodes
    )
    # Far from the clip the residual is N(0, 0.5) cut beyond about 2 deviations.
    assert len(residuals) > 1000
    assert np.mean(residuals) == pytest.approx(0, abs=0.05)
    assert np.std(residuals) == pytest.approx(0.5, abs=0.06)


def test_set_has_as_many_episodes_as_the_published_one(umaze: Any) -> None:
    # Minari's page of D4RL/pointmaze/umaze-v2 counts 13210 episodes in a million steps.
    assert umaze[0].total_episodes / STEPS == pytest.approx(0.01321, rel=0.1)


def test_metadata_tells_what_it_is(umaze: Any) -> None:
    metadata = umaze[0].storage.metadata
    assert umaze[0].id == "ddice/pointmaze-umaze-20k-v0"
    assert "not the published data" in metadata["description"]
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (10.1, 210.4)
    assert json.loads(metadata["eval_env_spec"]) == json.loads(pointmaze_evaluation_spec("umaze"))


@pytest.mark.parametrize(
    ("size", "goal", "horizon"),
    [("umaze", (-1.0, 1.0), 300), ("medium", (2.5, -2.5), 600), ("large", (3.5, -3.0), 800)],
)
def test_evaluation_environment_has_one_goal_random_starts_and_the_horizon(
    size: Any, goal: tuple[float, float], horizon: int
) -> None:
    env = gymnasium.make(EnvSpec.from_json(pointmaze_evaluation_spec(size)))
    assert [tuple(location) for location in env.unwrapped.maze.unique_goal_locations] == [goal]
    starts = {tuple(np.round(env.reset(seed=seed)[0]["achieved_goal"])) for seed in range(10)}
    assert len(starts) > 3
    ends = [env.step(np.zeros(2, dtype=np.float32))[3] for _ in range(horizon)]
    assert ends == [False] * (horizon - 1) + [True]
    env.close()


def test_evaluation_environment_is_recovered_in_a_fresh_process() -> None:
    program = (
        "import sys, gymnasium, ddice.collection, ddice.data.environment\nfrom "
        "gymnasium.envs.registration import EnvSpec\nassert 'gymnasium_robotics' not in "
        "sys.modules and ddice.data.environment.register_robotics()\nenv = "
        "gymnasium.make(EnvSpec.from_json(sys.stdin.read()))\nprint(env.spec.id, "
        "env.spec.max_episode_steps, len(env.unwrapped.maze.unique_goal_locations))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pointmaze_evaluation_spec("medium"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["PointMaze_Medium-v3", "600", "1"]


@pytest.mark.parametrize(("size", "episodes", "slack"), [("umaze", 50, 20), ("medium", 20, 90)])
def test_controller_scores_like_the_reference_expert(
    size: Any, episodes: int, slack: float
) -> None:
    env = gymnasium.make(EnvSpec.from_json(pointmaze_evaluation_spec(size)))
    returns = []
    for seed in range(episodes):
        controller, total, over = WaypointController(env.unwrapped.maze), 0.0, False
        observation, _ = env.reset(seed=seed)
        while not over:
            action = controller.act(
                observation["observation"].tolist(), tuple(observation["desired_goal"].tolist())
            )
            observation, reward, _, over, _ = env.step(np.clip(action, -1, 1).astype(np.float32))
            total += float(reward)
        returns.append(total)
    env.close()
    # Three standard errors of the mean: 6 over 50 episodes of umaze, 30 over 20 of medium.
    assert np.mean(returns) == pytest.approx(POINTMAZE_REFERENCES[size].expert, abs=slack)


def test_interrupted_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    original, calls = WaypointController.act, []

    def interrupted(self: WaypointController, state: Any, goal: Any) -> Any:
        calls.append(goal)
        if len(calls) == 200:
            raise KeyboardInterrupt
        return original(self, state, goal)

    closed: list[Any] = []
    monkeypatch.setattr(WaypointController, "act", interrupted)
    monkeypatch.setattr(
        pointmaze, "close_environment", lambda env: (closed.append(env), env.close())
    )
    with pytest.raises(KeyboardInterrupt):
        make_pointmaze("umaze", steps=1000, progress=False)
    assert len(closed) == 1
    assert [name for _, folders, files in os.walk(tmp_path) for name in [*folders, *files]] == []


def test_depth_first_search_takes_the_last_seen_neighbour_first() -> None:
    assert solve_maze(LOOP, (1, 1), (1, 1)) == []
    # From the upper left corner the moves see right, then down; down is explored first, all the way
    # round to the upper right.
    assert solve_maze(LOOP, (1, 1), (2, 1)) == [(2, 1)]
    assert solve_maze(LOOP, (1, 1), (2, 3)) == [(2, 1), (3, 1), (3, 2), (3, 3), (2, 3)]
    with pytest.raises(ValueError, match=r"\(1, 3\) can be reached from \(1, 1\)"):
        solve_maze([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], (1, 1), (1, 3))


def test_ids_are_never_the_published_ones_and_say_what_differs() -> None:
    assert pointmaze_id("umaze") == "ddice/pointmaze-umaze-v0"
    assert pointmaze_id("large", steps=100_000) == "ddice/pointmaze-large-100k-v0"
    assert pointmaze_id("medium", steps=1234, seed=7) == "ddice/pointmaze-medium-1234-seed7-v0"
    with pytest.raises(ValueError, match=r"under ddice/.*got 'D4RL/pointmaze/umaze-v2'"):
        make_pointmaze("umaze", dataset_id="D4RL/pointmaze/umaze-v2")
    with pytest.raises(ValueError, match="did you mean 'umaze'"):
        make_pointmaze("u-maze")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps >= 1"):
        make_pointmaze("umaze", steps=0)


def test_missing_robotics_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(ImportError, match=r"pip install 'ddice\[robotics\]'"):
        pointmaze_evaluation_spec("umaze")


def record(env_id: str, horizon: int | None = 1000, wrappers: Any = (), **kwargs: Any) -> EnvRecord:
    """What is recorded of an environment that need not be installed."""
    fields = {"id": env_id, "max_episode_steps": horizon, "kwargs": kwargs}
    return EnvRecord(spec=json.dumps({**fields, "additional_wrappers": list(wrappers)}))


def wrapper(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"name": name, "entry_point": f"gymnasium.wrappers:{name}", "kwargs": kwargs}


@pytest.mark.parametrize(
    ("env", "why"),
    [
        (record("Hopper-v5", forward_reward_weight=0.0), " with forward_reward_weight=0.0"),
        (record("Hopper-v5", 200), " with a horizon of 200, not 1000"),
        (record("Hopper-v5", None), " with no time limit, not 1000"),
        (
            record("Hopper-v5", wrappers=[wrapper("TimeLimit", max_episode_steps=7)]),
            " with a horizon of 7, not 1000",
        ),
        (
            record("Hopper-v5", wrappers=[wrapper("NormalizeReward", gamma=0.9)]),
            " with NormalizeReward(gamma=0.9)",
        ),
        (record("Hopper-v5", wrappers=[wrapper("Mine")]), " with Mine()"),
        (record("AdroitHandDoor-v1", 200, reward_type="sparse"), " with reward_type='sparse'"),
        (record("AdroitHandPen-v1", 200), " with a horizon of 200, not 100"),
    ],
)
def test_references_of_an_id_are_not_those_of_other_rewards_or_horizons(
    env: EnvRecord, why: str
) -> None:
    assert bundled_reference(env) is None
    assert why_not_bundled(env) == why


def test_references_hold_for_what_changes_no_reward() -> None:
    neutral = [wrapper("ClipAction"), wrapper("RecordEpisodeStatistics", buffer_length=100)]
    drawn = record("Hopper-v5", wrappers=neutral, render_mode="rgb_array", width=64)
    assert bundled_reference(drawn) == bundled_reference(record("Hopper-v5"))
    assert why_not_bundled(drawn) == ""
    dense = bundled_reference(record("AdroitHandDoor-v1", 200, reward_type="dense"))
    assert dense == bundled_reference(record("AdroitHandDoor-v1", 200))
    assert dense is not None
    assert dense.random == -56.512833


def test_bundled_references_are_found_by_exact_id_only() -> None:
    hopper = bundled_reference(record("Hopper-v5"))
    assert hopper is not None
    assert (hopper.random, hopper.expert) == (-20.272305, 3234.3)
    assert "D4RL" in hopper.source
    assert bundled_reference(record("SomeEnv-v0"), "hopper-medium-v2") == hopper
    for unknown in (
        "Hopper",
        "hopper-v5",
        "MyHopper-v5",
        "Ant-v5",
        "AntMaze_UMaze-v4",
        "PointMaze_UMaze-v3",
    ):
        assert bundled_reference(record(unknown)) is None
    assert bundled_reference(None) is None
    # The dataset knows which goal, the id of the environment does not.
    assert (
        bundled_reference(record("PointMaze_UMaze-v3"), "D4RL/pointmaze/umaze-v2")
        == POINTMAZE_REFERENCES["umaze"]
    )
    assert all(
        reference.expert > reference.random and reference.source for reference in BUNDLED.values()
    )
