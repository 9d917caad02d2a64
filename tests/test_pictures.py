"""The numbers behind the pictures, which are known; and that pictures are written and not empty."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import small
import torch
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from test_evaluation import StandIn, expected

import ddice
from ddice import pictures
from ddice.cli import main
from ddice.collection import pointmaze_evaluation_spec
from ddice.data.environment import record_of
from ddice.data.spec import EnvRecord
from ddice.dice_backends import GivenRatio
from ddice.diffusion.samplers import Selection
from ddice.extractors import GaussianBC, SelectOnly
from ddice.pictures.actions import behaviour_actions, density_grid, q_grid
from ddice.pictures.film import Film, encode_gif, require_rendering, strip
from ddice.pictures.maze import far_apart, position_columns
from ddice.pictures.paths import dataset_paths, segments
from ddice.policies.evaluation import Moment, episode_seed, evaluate
from ddice.runs.recipe import Recipe

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")

STEPS, LENGTH = 1500, 30
MAZE = "ddice/pointmaze-umaze-1500-v0"
SHORT = "ddice-test/ShortMaze-v0"  # the evaluation environment of umaze in episodes of 30 steps
SOLVER = {"kind": "ddim", "evaluations": 3}


class Blind(PendulumEnv):
    """Cannot be rendered."""

    def render(self) -> Any:
        raise RuntimeError("no such thing as a screen")


gymnasium.register("ddice-test/Blind-v0", f"{__name__}:Blind", max_episode_steps=5)


def q(observations: Any, actions: Any) -> Any:
    """Two members (2, B); first -(a0 - 0.5)^2 - a1^2, then the same plus a1."""
    one = -((actions[:, 0] - 0.5) ** 2) - actions[:, 1] ** 2
    return torch.stack([one, one + actions[:, 1]])


def eastward(batch: Any) -> Any:
    """Weight 3 where the first action is positive, else 0."""
    return 3.0 * (batch.actions[..., 0] > 0).float()


@pytest.fixture(scope="module", autouse=True)
def _folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        patch.setenv("DDICE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def umaze() -> EnvRecord:
    pytest.importorskip("gymnasium_robotics")
    fields = json.loads(pointmaze_evaluation_spec("umaze"))
    gymnasium.register(
        SHORT, fields["entry_point"], kwargs=fields["kwargs"], max_episode_steps=LENGTH
    )
    return record_of(SHORT)


@pytest.fixture(scope="module")
def data(umaze: EnvRecord) -> Any:
    from ddice.collection import make_pointmaze

    assert make_pointmaze("umaze", steps=STEPS, progress=False) == MAZE
    return ddice.load_dataset(MAZE, goal="fixed", env=SHORT)


@pytest.fixture(scope="module")
def prior(data: Any) -> Any:
    return Recipe.model_validate({"prior": small.FIELDS["prior"]}).prior.fit(
        data, steps=300, progress=False, device="cpu"
    )


@pytest.fixture(scope="module")
def policy(data: Any, prior: Any) -> Any:
    backend = GivenRatio(source=eastward, q=q).fit(data)
    return SelectOnly(candidates=6, solver=SOLVER).fit(
        data, prior=prior, backend=backend, progress=False, device="cpu"
    )


@pytest.fixture(scope="module")
def played(policy: Any) -> tuple[Any, list[pictures.Recording]]:
    return pictures.record(policy, episodes=2, seed=3, progress=False)


# -- evaluation shows its steps


@pytest.mark.parametrize("parallel", [1, 7])
def test_every_step_is_shown_once_in_order_and_scores_stay(parallel: int) -> None:
    seen: list[Moment] = []
    shown = evaluate(
        StandIn(), episodes=9, seed=5, parallel=parallel, progress=False, on_step=seen.append
    )
    assert (
        shown.returns
        == evaluate(StandIn(), episodes=9, seed=5, parallel=parallel, progress=False).returns
    )
    for episode, (length, total, success) in enumerate(expected(9, 5)):
        moments = [moment for moment in seen if moment.episode == episode]
        assert [moment.step for moment in moments] == list(range(length))
        assert [int(moment.observation["extra"]["clock"][0]) for moment in moments] == list(
            range(length)
        )
        assert [int(moment.next_observation["extra"]["clock"][0]) for moment in moments] == list(
            range(1, length + 1)
        )
        assert sum(moment.reward for moment in moments) == total
        assert moments[-1].success is success
        # the reward is prize + sum(action), so the action is the one that was played
        prize = float(moments[0].observation["ticket"][0])
        np.testing.assert_allclose(
            [moment.reward - prize for moment in moments],
            [moment.action.sum() for moment in moments],
            atol=1e-5,
        )


def test_a_recorder_keeps_the_first_episodes(policy: Any, played: Any) -> None:
    scores, recordings = played
    again = pictures.Recorder(1, seed=3)
    assert (
        evaluate(policy, episodes=2, seed=3, progress=False, on_step=again).returns
        == scores.returns
    )
    (first,) = again.recordings()
    assert tuple(recording.total for recording in recordings) == scores.returns
    np.testing.assert_array_equal(first.positions, recordings[0].positions)
    assert first.positions.shape == (LENGTH + 1, 2)
    assert (first.reset_seed, recordings[1].reset_seed) == (episode_seed(3, 0), episode_seed(3, 1))
    np.testing.assert_array_equal(first.positions[7], first.observations[7]["observation"][:2])
    np.testing.assert_array_equal(first.goals[7], first.observations[7]["desired_goal"])


def test_only_mazes_have_positions() -> None:
    _, (recording,) = pictures.record(StandIn(), episodes=1, progress=False)
    with pytest.raises(ValueError, match="only mazes have positions"):
        _ = recording.positions


# -- decisions


def test_the_density_has_integral_one_and_follows_the_actions() -> None:
    actions = np.clip(np.random.default_rng(0).normal((0.3, -0.9), 0.2, (500, 2)), -1, 1)
    density = density_grid(actions, cells=50)
    assert density.sum() * (2 / 50) ** 2 == pytest.approx(1)
    assert (density >= 0).all()
    row, column = np.unravel_index(density.argmax(), density.shape)
    centres = (np.arange(50) + 0.5) / 25 - 1
    assert abs(centres[column] - 0.3) < 0.15
    assert centres[row] < -0.85
    # far from the bounds one action gives a Gaussian of the least bandwidth, 0.03
    one = density_grid(np.zeros((1, 2)), cells=201)
    assert one[100, 100] == pytest.approx(1 / (2 * np.pi * 0.03**2), rel=1e-6)
    assert one[100, 103] / one[100, 100] == pytest.approx(
        np.exp(-0.5 * (3 * 2 / 201 / 0.03) ** 2), rel=1e-6
    )
    assert one[103, 100] == pytest.approx(one[100, 103])


@pytest.mark.parametrize(
    ("rule", "expected_at"),
    [("mean", lambda x, y: -((x - 0.5) ** 2) - y**2 + y / 2), ("minimum", None)],
)
def test_the_q_grid_is_q_at_its_nodes(policy: Any, rule: str, expected_at: Any) -> None:
    config = policy.config.model_copy(update={"selection": Selection(rule=rule)})
    ruled = ddice.Policy(config, policy.spec, policy.sampler, q)
    grid = q_grid(ruled, torch.zeros(4), q, nodes=5)
    expected_at = expected_at or (lambda x, y: -((x - 0.5) ** 2) - y**2 + min(y, 0))
    line = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(grid, [[expected_at(x, y) for x in line] for y in line], atol=1e-6)


def test_the_star_is_the_action_that_is_played(policy: Any, data: Any) -> None:
    observations = data.observations[:3].numpy()
    for seed, acting in ((None, {"deterministic": True}), (4, {"seed": 4})):
        for observation, view in zip(
            observations,
            pictures.view_actions(policy, observations, seed=seed, samples=50),
            strict=True,
        ):
            assert view.candidates.shape == (6, 2)
            np.testing.assert_allclose(
                view.action, policy.act(observation, **acting), atol=1e-6
            )  # the bounds are [-1, 1]
            scores = q(None, torch.as_tensor(view.candidates)).mean(0)
            assert int(scores.argmax()) == view.chosen


def test_the_behaviour_comes_from_where_it_says(policy: Any, data: Any, prior: Any) -> None:
    state = data.observations[100]
    rows, source = behaviour_actions(policy, state, data=data)
    distance = (
        ((data.observations - state) / torch.tensor(data.spec.normalizer.std)).square().sum(-1)
    )
    nearest = data.actions[distance.argsort()[:200]].numpy()
    assert source == "actions of the 200 nearest rows"
    np.testing.assert_allclose(np.sort(rows, axis=0), np.sort(nearest, axis=0))
    # without guidance the policy's sampler is the prior, with another solver
    own, source = behaviour_actions(policy, state, samples=64)
    assert source == "64 samples of the prior"
    given, source = behaviour_actions(policy, state, prior=prior, samples=64)
    assert source == "64 samples of the prior"
    assert (own != given).any()
    unguided = SelectOnly(candidates=1).fit(
        data, prior=prior, progress=False, device="cpu"
    )  # with the solver that a prior alone is read with
    np.testing.assert_array_equal(behaviour_actions(unguided, state, samples=64)[0], given)
    guided = Recipe.model_validate(
        {"extractor": {**small.EXTRACTORS["guide_then_select"], "candidates": 1, "solver": SOLVER}}
    ).extractor
    backend = GivenRatio(source=eastward, q=q).fit(data)
    policy_guided = guided.fit(
        data, prior=prior, backend=backend, steps=3, progress=False, device="cpu"
    )
    np.testing.assert_array_equal(behaviour_actions(policy_guided, state, samples=64)[0], own)
    clone = GaussianBC(network={"hidden": [8]}, batch_size=16).fit(
        data, backend=backend, steps=2, progress=False, device="cpu"
    )
    assert behaviour_actions(clone, state, samples=8)[1] == "8 samples of the policy itself"
    (view,) = pictures.view_actions(clone, state, samples=8)
    assert clone.config.candidates == 1
    np.testing.assert_array_equal(view.q, q_grid(clone, torch.as_tensor(state), backend.q))


def test_a_policy_of_other_actions_is_refused(tmp_path: Path) -> None:
    other = ddice.load_dataset(small.arrays(), env=small.SHORT)
    one = GaussianBC(network={"hidden": [8]}, batch_size=16).fit(
        other,
        backend=GivenRatio(source=small.ratio).fit(other),
        steps=1,
        progress=False,
        device="cpu",
    )
    with pytest.raises(ValueError, match="2-dimensional actions, got 1 dimensions"):
        pictures.decision(one, np.zeros(3))


# -- mazes


def test_walls_are_where_the_map_has_ones(umaze: EnvRecord) -> None:
    maze = pictures.read_maze(umaze)
    assert maze is not None
    # 11111 / 1g001 / 11101 / 10001 / 11111 with cells of side 1 around the origin, the first row on
    # top
    free = {
        (-1.5, 0.5),
        (-0.5, 0.5),
        (0.5, 0.5),
        (0.5, -0.5),
        (-1.5, -1.5),
        (-0.5, -1.5),
        (0.5, -1.5),
    }
    corners = {(x - 2.5, y - 2.5) for x in range(5) for y in range(5)} - free
    assert {(x, y) for x, y, _, _ in maze.walls} == corners
    assert (maze.walls[:, 2:] == 1).all()
    assert maze.extent == (-2.5, 2.5, -2.5, 2.5)
    assert maze.view == pytest.approx((-1.8, 1.8, -1.8, 1.8))
    assert maze.goal == (-1.0, 1.0)


def test_other_environments_are_no_mazes() -> None:
    assert pictures.read_maze("Pendulum-v1") is None


def test_segments_are_the_recorded_positions() -> None:
    positions = np.array([[0.0, 0], [1, 0], [1, 2]])
    assert segments(positions).tolist() == [[[0, 0], [1, 0]], [[1, 0], [1, 2]]]


def test_dataset_paths_are_whole_episodes(data: Any) -> None:
    episodes = int(data.episode[-1]) + 1
    paths = dataset_paths(data, episodes=10**6)
    assert len(paths) == episodes
    assert sum(len(path) - 1 for path in paths) == len(data)
    mask = data.episode == 1
    np.testing.assert_array_equal(paths[1][:-1], data.observations[mask][:, :2].numpy())
    np.testing.assert_array_equal(paths[1][-1], data.next_observations[mask][-1, :2].numpy())
    assert len(dataset_paths(data, episodes=3)) == 3


def test_positions_are_found_in_both_views(data: Any) -> None:
    assert position_columns(data.spec) == slice(0, 2)
    observed = ddice.load_dataset(MAZE, goal="observed")
    columns = position_columns(observed.spec)
    np.testing.assert_array_equal(observed.observations[:, columns], data.observations[:, :2])
    with pytest.raises(ValueError, match="expected the observations of a goal maze"):
        position_columns(StandIn().spec)


def test_far_apart_points() -> None:
    assert far_apart(np.array([[0.0], [1.0], [10.0], [4.0]]), 3) == [0, 2, 3]
    assert far_apart(np.zeros((2, 1)), 5) == [0, 0]


def test_the_ratio_grid_weighs_rows(data: Any, umaze: EnvRecord) -> None:
    maze = pictures.read_maze(umaze)
    assert maze is not None
    backend = GivenRatio(source=eastward).fit(data)
    grid = pictures.ratio_grid(backend, data, maze)
    positions, east = data.observations[:, :2].numpy(), data.actions[:, 0].numpy() > 0
    area = (maze.side / 12) ** 2
    assert grid.data.sum() * area == pytest.approx(1)
    assert grid.weighted.sum() * area == pytest.approx(1)
    assert grid.effective_sample_size == pytest.approx(east.mean())
    # by hand: the share of rows (of eastward rows) in the lower half, and in the bin of row 0
    lower = positions[:, 1] < 0
    assert grid.data[:30].sum() * area == pytest.approx(lower.mean())
    assert grid.weighted[:30].sum() * area == pytest.approx(lower[east].mean())
    column, row = np.floor((positions[0] + 2.5) * 12).astype(int)
    inside = (np.floor((positions + 2.5) * 12) == (column, row)).all(1)
    assert grid.data[row, column] * area == pytest.approx(inside.mean())
    # an arrow is the mean step of the rows around its point
    steps = (data.next_observations - data.observations)[:, :2].numpy()
    for point, mean, weighted in zip(
        grid.points, grid.data_steps, grid.weighted_steps, strict=True
    ):
        here = (np.abs(positions - point) < maze.side / 6).all(1)
        np.testing.assert_allclose(mean, steps[here].mean(0), atol=1e-6)
        np.testing.assert_allclose(weighted, steps[here & east].mean(0), atol=1e-6)
    assert np.abs(grid.data_steps - grid.weighted_steps).max() > 1e-3


def test_ratios_that_are_all_zero_are_refused(data: Any, umaze: EnvRecord) -> None:
    maze = pictures.read_maze(umaze)
    assert maze is not None
    with pytest.raises(ValueError, match="switched all data off"):
        pictures.ratio_grid(
            GivenRatio(source=lambda batch: torch.zeros(len(batch.rows))).fit(data), data, maze
        )


def is_a_picture(path: Path) -> bool:
    """A PNG with many colours."""
    with Image.open(path) as image:
        return (
            image.format == "PNG"
            and len(image.convert("RGB").resize((200, 200)).getcolors(40_000)) > 20
        )


def test_the_pictures_are_written(
    policy: Any, data: Any, umaze: EnvRecord, played: Any, tmp_path: Path
) -> None:
    maze = pictures.read_maze(umaze)
    assert maze is not None
    backend = GivenRatio(source=eastward, q=q).fit(data)
    figures = {
        "decision": pictures.decision(policy, data.observations[:2], maze=maze),
        "plain": pictures.decision(policy, data.observations[0], data=data, q=q),
        "time": pictures.trajectories(maze, played[1], data=data),
        "success": pictures.trajectories(maze, played[1], colour="success"),
        "ratios": pictures.ratio_map(backend, data, maze),
    }
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert is_a_picture(tmp_path / f"{name}.png"), name
    with pytest.raises(ValueError, match="at least one recorded episode"):
        pictures.trajectories(maze, [])


# -- films


def film(frames: int, size: tuple[int, int] = (40, 60), noise: bool = False) -> Film:
    """Frames of two episodes; each of one colour of its own, or of noise, which no encoder makes
    small.
    """
    random = np.random.default_rng(0)
    one = [
        random.integers(0, 256, (*size, 3), dtype=np.uint8)
        if noise
        else np.full((*size, 3), 5 * i, np.uint8)
        for i in range(frames)
    ]
    return Film(
        tuple(one),
        tuple(50 if i < frames - 1 else 1000 for i in range(frames)),
        tuple(int(i >= frames // 2) for i in range(frames)),
    )


def test_a_gif_has_all_frames_their_times_and_their_size(tmp_path: Path) -> None:
    pictures.write_gif(film(8), tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.format, image.n_frames, image.size, image.info["loop"]) == (
            "GIF",
            8,
            (60, 40),
            0,
        )
        times = []
        for i in range(8):
            image.seek(i)
            times.append(image.info["duration"])
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - 5 * i).max() <= 4
    assert times == [50] * 7 + [1000]


def test_a_gif_shrinks_until_it_fits() -> None:
    noisy = film(4, (120, 160), noise=True)
    whole = encode_gif(noisy)
    small_one = encode_gif(noisy, max_bytes=len(whole) // 2)
    assert len(small_one) <= len(whole) // 2
    import io

    with Image.open(io.BytesIO(small_one)) as image:
        assert image.n_frames == 4
        assert image.size == (
            round(160 * 0.64),
            round(120 * 0.64),
        )  # two steps of 0.8: the area is 0.41 of what it was


def test_a_strip_has_a_row_for_each_episode(tmp_path: Path) -> None:
    whole = strip(film(10), columns=3)
    assert whole.shape == (2 * 40, 3 * 60, 3)
    assert whole[::40, ::60, 0].tolist() == [[0, 10, 20], [25, 35, 45]]
    pictures.write_strip(film(10), tmp_path / "a.png", columns=3)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), whole)


@pytest.fixture(scope="module")
def renders(umaze: EnvRecord) -> None:
    try:
        require_rendering(umaze)
    except OSError as error:
        pytest.skip(str(error))


def test_a_film_plays_the_evaluation_again(umaze: EnvRecord, played: Any, renders: None) -> None:
    recordings = [shortened(recording, 20) for recording in played[1]]
    made = pictures.make_film(umaze, recordings, fps=25, width=100)
    # PointMaze has 50 frames per second, so every second step, 0 to 20, of each of two episodes
    assert len(made.frames) == 2 * 11
    assert made.episode == (0,) * 11 + (1,) * 11
    assert made.milliseconds == ((40,) * 10 + (1000,)) * 2
    assert all(frame.shape == (116, 100, 3) for frame in made.frames)
    assert not np.array_equal(made.frames[0], made.frames[10])
    # too many steps for max_frames: fewer frames, the same end
    fewer = pictures.make_film(umaze, recordings[:1], max_frames=4, width=100)
    assert len(fewer.frames) == 1 + 4
    np.testing.assert_array_equal(fewer.frames[-1], made.frames[10])


def test_an_episode_that_comes_out_differently_is_refused(
    umaze: EnvRecord, played: Any, renders: None
) -> None:
    (recording, *_) = played[1]
    for changes in (
        {"rewards": recording.rewards + 1},
        {"actions": -recording.actions},
        {"reset_seed": 0},
    ):
        with pytest.raises(
            ValueError,
            match=r"expected .* again at step [01], got .* is the environment not deterministic",
        ):
            pictures.make_film(umaze, [dataclasses.replace(recording, **changes)])


def shortened(recording: pictures.Recording, steps: int) -> pictures.Recording:
    return pictures.Recording(
        recording.reset_seed,
        recording.observations[: steps + 1],
        recording.actions[:steps],
        recording.rewards[:steps],
        recording.success,
    )


def test_what_cannot_be_rendered_says_how_to_mend_it() -> None:
    with pytest.raises(OSError, match=r"cannot render .*no such thing.* MUJOCO_GL=egl"):
        require_rendering("ddice-test/Blind-v0")


# -- the command line


@pytest.fixture(scope="module")
def run_folder(data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on the tiny maze."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    fields = {
        **small.FIELDS,
        "data": {"source": MAZE, "goal": "fixed", "env": SHORT},
        "evaluation": {"episodes": 0},
    }
    assert (
        main(
            [
                "train",
                *small.flags("", fields),
                "--run",
                str(folder),
                "--no-progress",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    return folder


def test_picture_draws_three(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "picture",
                str(run_folder),
                "--episodes",
                "2",
                "--states",
                "2",
                "--no-progress",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    names = ("decisions", "trajectories", "ratios")
    for name in names:
        assert is_a_picture(run_folder / "pictures" / f"{name}.png")
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith("png")] == [
        str(run_folder / "pictures" / f"{name}.png") for name in names
    ]
    # the folder of a policy knows no data: two pictures, and the reason
    assert (
        main(
            [
                "picture",
                str(run_folder / "policy"),
                "--out",
                str(tmp_path / "p"),
                "--episodes",
                "1",
                "--no-progress",
            ]
        )
        == 0
    )
    assert "no ratios.png" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "p").iterdir()} == {
        "decisions.png",
        "trajectories.png",
    }


def test_picture_never_trains(
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "empty"))
    assert (
        main(
            [
                "picture",
                str(run_folder),
                "--out",
                str(tmp_path / "p"),
                "--episodes",
                "1",
                "--no-progress",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert (
        f"no ratios.png: the trained backend is not in the cache {tmp_path / 'empty'}"
        in capsys.readouterr().out
    )
    assert [path.name for path in (tmp_path / "empty").iterdir()] == [
        "data"
    ]  # read for the ratios; nothing was trained


def test_picture_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = small.flags(
        small.write_npz(tmp_path / "a.npz"),
        {**small.FIELDS, "data": {"source": str(tmp_path / "a.npz"), "env": small.SHORT}},
    )
    assert main(["train", *fields, "--run", str(tmp_path / "a"), "--no-progress"]) == 0
    assert main(["picture", str(tmp_path / "a"), "--no-progress"]) == 1
    output = capsys.readouterr()
    assert "no decisions.png: it needs 2-dimensional actions, and this policy has 1" in output.out
    assert "no trajectories.png: it needs a goal maze" in output.out
    assert "--render film.gif" in output.err


@pytest.mark.parametrize("name", ["film.gif", "paths.png"])
def test_rendering_leaves_scores_alone(
    run_folder: Path, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "film.gif":
        request.getfixturevalue("renders")
    plain = [
        "evaluate",
        str(run_folder),
        "--episodes",
        "3",
        "--seed",
        "2",
        "--no-progress",
        "--device",
        "cpu",
    ]
    assert main([*plain, "--json", str(tmp_path / "plain.json")]) == 0
    shown = ["--render", str(tmp_path / name), "--render-frames", "10", "--render-width", "80"]
    assert main([*plain, "--json", str(tmp_path / "shown.json"), *shown]) == 0
    one, two = (
        json.loads((tmp_path / f"{which}.json").read_text()) for which in ("plain", "shown")
    )
    assert one["returns"] == two["returns"]
    with Image.open(tmp_path / name) as image:
        assert (
            (image.n_frames, image.size) == (1 + 10, (80, 96))
            if name == "film.gif"
            else is_a_picture(tmp_path / name)
        )


def test_rendering_mistakes_are_said_before_anything_is_played(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_folder / "policy", tmp_path / "p")
    for arguments, message in (
        (["--render", "a.mp4"], "expected --render to name a .gif or a .png, got 'a.mp4'"),
        (["--render", "a.gif", "--render-episodes", "0"], "--render-episodes of at least 1"),
        (
            ["--render", "a.gif", "--env", "ddice-test/Blind-v0"],
            "cannot render ddice-test/Blind-v0: RuntimeError: no such thing as a screen",
        ),
    ):
        assert main(["evaluate", str(tmp_path / "p"), "--episodes", "1", *arguments]) == 1
        assert message in capsys.readouterr().err
