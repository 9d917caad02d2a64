"""Minari round trips, the goal view, environments, and datasets that are not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddice.data import load_dataset
from ddice.data.environment import clean_record, make_env, record_of
from ddice.data.minari_store import has_dataset
from ddice.data.minari_writer import write_dataset
from ddice.data.spec import FixedGoal, ObservedGoal
from ddice.data.view import GOAL_RADIUS

gymnasium = pytest.importorskip("gymnasium")
minari = pytest.importorskip("minari")

MAZE = [[1, 1, 1, 1, 1], [1, "g", 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
"""One goal, in the cell whose centre is (-1, 1)."""

ABOUT = {"reference_scores": None, "description": "made by hand", "algorithm": "none"}


@pytest.fixture(autouse=True)
def _own_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def episode(length: int, *, terminated: bool = False, start: float = 0.0) -> dict[str, Any]:
    ends = np.arange(length) == length - 1
    return {
        "observations": start + np.arange(3.0 * (length + 1)).reshape(length + 1, 3),
        "actions": np.linspace(-1, 1, length, dtype=np.float32)[:, None],
        "rewards": np.arange(1.0, length + 1),
        "terminations": ends & terminated,
        "truncations": ends & (not terminated),
        "seed": 7,
    }


def write_plain(dataset_id: str = "test/plain-v0", episodes: Any = None, **about: Any) -> None:
    episodes = (
        [episode(3, terminated=True), episode(1, start=50), episode(4, start=100)]
        if episodes is None
        else episodes
    )
    write_dataset(
        dataset_id, episodes, env_spec_json=None, eval_env_spec_json=None, **{**ABOUT, **about}
    )


def point_maze(**changes: Any) -> str:
    pytest.importorskip("gymnasium_robotics")
    changes = {"maze_map": MAZE, "continuing_task": True, "reset_target": False, **changes}
    record = json.loads(record_of("PointMaze_UMaze-v3").spec)
    return json.dumps({**record, "kwargs": {**record["kwargs"], **changes}})


def maze_episode(positions: Any) -> dict[str, Any]:
    """Positions of T + 1 steps; velocities, goals and rewards that the fixed view must not
    confuse with them.
    """
    positions = np.asarray(positions, np.float64)
    steps = len(positions) - 1
    return {
        "observations": {
            "observation": np.hstack([positions, np.full((steps + 1, 2), 9.0)]),
            "achieved_goal": positions,
            "desired_goal": np.full((steps + 1, 2), 3.0),
        },
        "actions": np.zeros((steps, 2), np.float32),
        "rewards": np.full(steps, 0.5),
        "terminations": np.zeros(steps, bool),
        "truncations": np.arange(steps) == steps - 1,
        "seed": None,
    }


MAZE_EPISODES = [[(1, 1), (0, 1), (-0.6, 1), (-1, 1), (-1, 0.5)], [(-1, 1), (-1, 0.5), (-1, 0.56)]]


def write_maze(dataset_id: str = "test/maze-v0", evaluation: str | None = None) -> None:
    recorded = point_maze(
        maze_map=[[cell if cell == 1 else 0 for cell in row] for row in MAZE]
    )  # every free cell may be the goal
    episodes = [maze_episode(positions) for positions in MAZE_EPISODES]
    write_dataset(
        dataset_id,
        episodes,
        env_spec_json=recorded,
        eval_env_spec_json=evaluation,
        **{**ABOUT, "reference_scores": (10.0, 210.0)},
    )


def test_round_trip_row_by_row_and_equal_to_arrays() -> None:
    write_plain()
    assert has_dataset("test/plain-v0")
    data = load_dataset("test/plain-v0", action_bounds=(-1, 1))
    assert data.rows.tolist() == list(
        range(8)
    )  # the truncated ones keep their last row: T + 1 observations
    assert data.episode.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert data.observations[:, 0].tolist() == [0, 3, 6, 50, 100, 103, 106, 109]
    assert data.next_observations[:, 0].tolist() == [3, 6, 9, 53, 103, 106, 109, 112]
    assert data.terminations.tolist() == [False, False, True, False, False, False, False, False]
    assert data.initial_observations[:, 0].tolist() == [0, 50, 100]
    arrays = {
        "observations": data.observations,
        "next_observations": data.next_observations,
        "actions": data.actions,
        "rewards": data.rewards,
        "terminations": data.terminations,
        "truncations": np.array([0, 0, 0, 1, 0, 0, 0, 1]),
    }
    assert load_dataset(arrays, action_bounds=(-1, 1)).spec == data.spec


def test_a_minari_dataset_and_its_selection_of_episodes() -> None:
    write_plain()
    dataset = minari.load_dataset("test/plain-v0")
    whole = load_dataset(dataset, action_bounds="data")
    assert whole.spec == load_dataset("test/plain-v0", action_bounds="data").spec
    dataset.episode_indices = np.array([2, 0])
    part = load_dataset(dataset, action_bounds="data")
    assert part.observations[:, 0].tolist() == [100, 103, 106, 109, 0, 3, 6]
    assert part.rows.tolist() == list(range(7))


def test_infinite_bounds_are_refused() -> None:
    write_plain()
    with pytest.raises(
        ValueError, match=r'expected finite action bounds, got low .*action_bounds="data"'
    ):
        load_dataset("test/plain-v0")


def test_writing_refuses_what_exists_and_replaces_what_is_half_written(tmp_path: Path) -> None:
    write_plain()
    with pytest.raises(ValueError, match="exists already"):
        write_plain()
    with pytest.raises(ValueError, match="at least one episode"):
        write_plain("test/none-v0", [])
    with pytest.raises(ValueError, match="expected a Minari id"):
        write_plain("no version")
    metadata = tmp_path / "test" / "plain-v0" / "data" / "metadata.json"
    fields = json.loads(metadata.read_text())
    metadata.write_text(
        json.dumps({**fields, "total_episodes": 0, "total_steps": 0})
    )  # what a killed writer leaves
    assert not has_dataset("test/plain-v0")
    write_plain()
    assert has_dataset("test/plain-v0")
    shutil.rmtree(tmp_path / "test")
    assert not has_dataset("test/plain-v0")


def test_discrete_actions_and_images_are_not_supported_yet(tmp_path: Path) -> None:
    write_plain("test/box-v0")
    metadata = tmp_path / "test" / "box-v0" / "data" / "metadata.json"
    fields = json.loads(metadata.read_text())
    for name, space, message in (
        (
            "action_space",
            {"type": "Discrete", "dtype": "int64", "start": 0, "n": 3},
            "discrete actions are not supported yet",
        ),
        (
            "observation_space",
            {"type": "Discrete", "dtype": "int64", "start": 0, "n": 3},
            "boxes, or dicts of boxes",
        ),
        (
            "observation_space",
            {"type": "Box", "dtype": "uint8", "shape": [3], "low": [0] * 3, "high": [255] * 3},
            "vectors of bytes are not supported yet: the observation in test/box-v0 is uint8",
        ),
    ):
        metadata.write_text(json.dumps({**fields, name: json.dumps(space)}))
        with pytest.raises(ValueError, match=message):
            load_dataset("test/box-v0")


def test_missing_datasets_are_reported_without_trying_a_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        minari, "download_dataset", lambda dataset_id: pytest.fail("waits 23 s without a network")
    )
    for dataset_id, message in (
        ("ddice/pointmaze/medium-v0", "made locally, with `ddice data make pointmaze-medium`"),
        ("ddice/other-v0", "`ddice data make pointmaze-umaze` or"),
        (
            "D4RL/pointmaze/umaze-v2",
            r"`minari download D4RL/pointmaze/umaze-v2`.*MINARI_DATASETS_PATH.*`ddice data "
            r"make pointmaze-umaze`",
        ),
        ("D4RL/door/human-v2", "`minari download D4RL/door/human-v2`"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            load_dataset(dataset_id)
    with pytest.raises(FileNotFoundError, match="download=False"):
        load_dataset("D4RL/door/human-v2", download=False)
    with pytest.raises(ValueError, match="expected a Minari id"):
        load_dataset("data.txt")


def test_every_way_a_download_fails_ends_in_the_same_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ddice.data import download

    def fail(error: Exception) -> Any:
        def attempt(dataset_id: str) -> None:
            raise error

        return attempt

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(download, "_reachable", lambda host, port: False)
    with pytest.raises(FileNotFoundError, match=r"no network: .* cannot be reached"):
        load_dataset("D4RL/door/human-v2")
    monkeypatch.setattr(download, "_reachable", lambda host, port: True)
    for error in (
        ImportError("no hub"),
        ConnectionError("offline mode"),
        FileNotFoundError("gone"),
        RuntimeError("connect"),
    ):
        monkeypatch.setattr(minari, "download_dataset", fail(error))
        with pytest.raises(
            FileNotFoundError, match=f"{type(error).__name__}: .*minari download D4RL/door/human-v2"
        ):
            load_dataset("D4RL/door/human-v2")


def test_the_fixed_goal_relabels_by_the_next_position() -> None:
    write_maze(evaluation=point_maze())
    data = load_dataset("test/maze-v0")
    assert data.spec.view == FixedGoal(goal=(-1.0, 1.0), radius=GOAL_RADIUS)
    assert [part.path for part in data.spec.observations.parts] == ["observation"]
    assert data.observations[1].tolist() == [0, 1, 9, 9]
    # Next positions: (0, 1), (-0.6, 1), (-1, 1), (-1, 0.5) | (-1, 0.5), (-1, 0.56): only those
    # within 0.45 of (-1, 1) pay.
    assert data.rewards.tolist() == [0, 1, 1, 0, 0, 1]
    assert not data.terminations.any()
    assert data.describe().truncations == 2
    assert data.spec.reference is not None
    assert data.spec.reference.source == "Minari"
    assert data.spec.env is not None
    assert json.loads(data.spec.env.spec)["kwargs"]["maze_map"] == MAZE
    observed = load_dataset("test/maze-v0", goal="observed")
    assert observed.spec.view == ObservedGoal()
    assert [part.path for part in observed.spec.observations.parts] == [
        "achieved_goal",
        "desired_goal",
        "observation",
    ]
    assert observed.observations[1].tolist() == [0, 1, 3, 3, 0, 1, 9, 9]
    assert observed.rewards.tolist() == [0.5] * 6
    assert observed.spec.behaviour_fingerprint != data.spec.behaviour_fingerprint


def test_the_radius_and_the_comparison_are_those_of_the_environment() -> None:
    env = make_env(clean_record(point_maze())).unwrapped
    for distance, reward in ((GOAL_RADIUS - 1e-9, 1), (GOAL_RADIUS + 1e-9, 0)):
        assert env.compute_reward(np.array([distance, 0.0]), np.zeros(2), {}) == reward


def test_without_one_goal_location_the_goal_stays_observed() -> None:
    write_maze()  # the recorded environment has five goal locations
    assert load_dataset("test/maze-v0").spec.view == ObservedGoal()
    with pytest.raises(ValueError, match=r"one goal location, got \d"):
        load_dataset("test/maze-v0", goal="fixed")
    given = load_dataset("test/maze-v0", goal="fixed", env=make_env(clean_record(point_maze())))
    assert given.rewards.tolist() == [0, 1, 1, 0, 0, 1]


def test_goals_of_arrays_and_a_position_that_the_observation_lacks() -> None:
    spec = gymnasium.envs.registration.EnvSpec.from_json(point_maze())
    parts = [maze_episode(positions) for positions in MAZE_EPISODES]
    keys = ("actions", "rewards", "terminations", "truncations")
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in keys}
    arrays["observations"] = {
        key: np.concatenate([p["observations"][key][:-1] for p in parts])
        for key in parts[0]["observations"]
    }
    arrays["next_observations"] = {
        key: np.concatenate([p["observations"][key][1:] for p in parts])
        for key in parts[0]["observations"]
    }
    data = load_dataset(arrays, env=spec)
    write_maze(evaluation=point_maze())
    assert data.spec.fingerprint == load_dataset("test/maze-v0").spec.fingerprint
    for name in ("observations", "next_observations"):
        arrays[name]["observation"] = (
            arrays[name]["observation"] + 1
        )  # no column repeats the position any more
    kept = load_dataset(arrays, env=spec)
    assert [part.path for part in kept.spec.observations.parts] == ["achieved_goal", "observation"]
    with pytest.raises(ValueError, match="does not record: give env="):
        load_dataset(arrays, goal="fixed", action_bounds=(-1, 1))
    with pytest.raises(ValueError, match=r"needs a maze|observations of the dataset"):
        load_dataset(arrays, goal="fixed", env="Pendulum-v1")


def test_an_environment_that_does_not_fit_is_refused() -> None:
    arrays = {
        "observations": np.zeros((4, 3)),
        "actions": np.zeros((4, 1)),
        "rewards": np.zeros(4),
        "terminations": [0, 0, 0, 1],
    }
    with pytest.warns(UserWarning, match="no truncations were given"):
        data = load_dataset(arrays, env="Pendulum-v1")
    assert (data.spec.actions.low, data.spec.actions.high) == ((-2,), (2,))
    assert data.spec.env is not None
    assert data.spec.env.id == "Pendulum-v1"
    with pytest.raises(ValueError, match="observations of the dataset"):
        load_dataset({**arrays, "observations": np.zeros((4, 2))}, env="Pendulum-v1")
    with pytest.raises(ValueError, match=r"actions of the dataset, .*\(2,\), got \(1,\)"):
        load_dataset({**arrays, "actions": np.zeros((4, 2))}, env="Pendulum-v1")
    with pytest.raises(ValueError, match="registered Gymnasium id"):
        load_dataset(arrays, env="Pendulumm-v7")
    with pytest.raises(TypeError, match=r"an id, a gymnasium\.Env or an EnvSpec"):
        load_dataset(arrays, env=3)


def test_old_records_and_missing_packages() -> None:
    old = json.dumps(
        {
            **json.loads(gymnasium.spec("Pendulum-v1").to_json()),
            "apply_api_compatibility": False,
            "autoreset": False,
        }
    )
    assert make_env(clean_record(old)).spec.id == "Pendulum-v1"
    record = record_of("Pendulum-v1")
    broken = clean_record(
        json.dumps({**json.loads(record.spec), "entry_point": "not_installed.anywhere:Env"})
    )
    with pytest.raises(ImportError, match=r"pip install 'ddice\[robotics\]'"):
        make_env(broken)


def test_an_environment_that_cannot_be_made_does_not_change_the_view_in_silence() -> None:
    broken = json.dumps({**json.loads(point_maze()), "entry_point": "not_installed.anywhere:Env"})
    write_maze(evaluation=point_maze())
    metadata = Path(minari.load_dataset("test/maze-v0").storage.data_path) / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "eval_env_spec": broken}))
    with pytest.raises(ImportError, match='goal="observed"'):
        load_dataset("test/maze-v0")
    assert len(load_dataset("test/maze-v0", goal="observed")) == 6


def test_sources_of_different_kinds_join() -> None:
    write_plain()
    arrays = {
        "observations": torch.zeros(3, 3),
        "actions": torch.zeros(3, 1),
        "rewards": torch.zeros(3),
        "episode_ids": torch.tensor([4, 4, 4]),
    }
    with pytest.warns(UserWarning, match="1 of 3 rows dropped"):
        data = load_dataset(["test/plain-v0", arrays], action_bounds=(-1, 1))
    assert data.rows.tolist() == [*range(8), 8, 9]
    assert data.spec.episodes == 4
