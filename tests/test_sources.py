"""Files in D4RL's and OGBench's layout, written by hand, and what is said of those that cannot
be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddice.cli.main import main
from ddice.data import load_dataset
from ddice.data.arrays import read_arrays
from ddice.data.minari_writer import write_dataset

h5py = pytest.importorskip("h5py")

UNIT = {"action_bounds": (-1.0, 1.0)}
AGREE = (
    "observations",
    "next_observations",
    "actions",
    "rewards",
    "terminations",
    "episode",
    "initial_observations",
    "rows",
)


def d4rl(**changes: Any) -> dict[str, Any]:
    """Rows 0-2 terminate, rows 3-6 time out; what came after row 6 is in next_observations only."""
    observations = np.stack([np.arange(7.0), np.arange(10.0, 17.0)], 1)
    columns = {
        "observations": observations,
        "next_observations": observations + 1,
        "actions": np.array([[-1.0], [0], [1], [0.5], [-0.5], [0.25], [0]], np.float32),
        "rewards": np.array([[1.0], [2], [4], [1], [1], [1], [100]]),
        "terminals": np.arange(7) == 2,
        "timeouts": (np.arange(7) == 6).astype(np.uint8),
        "infos": {"goal": np.zeros((7, 2)), "qpos": np.zeros((3, 9))},
        "metadata": {"algorithm": np.bytes_("SAC")},
    }
    return {key: value for key, value in {**columns, **changes}.items() if value is not None}


def write_hdf5(path: Path, columns: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in columns.items():
            if isinstance(value, dict):
                for inner, array in value.items():
                    file[f"{key}/{inner}"] = array
            else:
                file[key] = value
    return path


def load(source: Any, **options: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_dataset(source, **{**UNIT, **options})


def agree(one: Any, two: Any) -> None:
    for name in AGREE:
        assert torch.equal(getattr(one, name), getattr(two, name)), name


def test_d4rl_with_next_observations_keeps_every_row(tmp_path: Path) -> None:
    data = load_dataset(write_hdf5(tmp_path / "a.hdf5", d4rl()), **UNIT)
    assert data.rows.tolist() == list(range(7))
    assert data.observations[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert data.next_observations[:, 1].tolist() == [11, 12, 13, 14, 15, 16, 17]
    assert data.rewards.tolist() == [1, 2, 4, 1, 1, 1, 100]
    assert data.terminations.tolist() == [False, False, True, False, False, False, False]
    assert data.episode.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert data.initial_observations.tolist() == [[0, 10], [3, 13]]
    described = data.describe()
    assert (
        described.terminations,
        described.truncations,
        described.dropped_rows,
        described.notes,
    ) == (1, 1, 0, ())


def test_d4rl_without_next_observations_drops_the_row_of_a_timeout(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", d4rl(next_observations=None))
    with pytest.warns(UserWarning, match=r"a\.h5: 1 of 7 rows dropped"):
        data = load_dataset(str(path), **UNIT)
    assert data.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.next_observations[:, 0].tolist() == [
        1,
        2,
        2,
        4,
        5,
        6,
    ]  # row 2 terminated: a stand-in that is never read
    assert data.terminations.tolist() == [False, False, True, False, False, False]
    assert data.rewards.tolist() == [1, 2, 4, 1, 1, 1]


def test_a_termination_in_the_row_of_a_timeout_is_a_termination(tmp_path: Path) -> None:
    both = load(
        write_hdf5(
            tmp_path / "a.hdf5",
            d4rl(next_observations=None, terminals=np.isin(np.arange(7), (2, 6))),
        )
    )
    assert both.rows.tolist() == list(range(7))
    assert both.terminations.tolist() == [False, False, True, False, False, False, True]


def test_d4rl_without_timeouts_says_what_is_not_known(tmp_path: Path) -> None:
    flat = write_hdf5(tmp_path / "flat.hdf5", d4rl(next_observations=None, timeouts=None))
    with (
        pytest.warns(UserWarning, match="1 of 7 rows dropped"),
        pytest.warns(UserWarning, match=r"no truncations were given.*episode_steps="),
    ):
        data = load_dataset(flat, **UNIT)
    assert data.episode.tolist() == [0, 0, 0, 1, 1, 1]
    rows = write_hdf5(tmp_path / "rows.hdf5", d4rl(timeouts=None))
    with pytest.warns(UserWarning, match=r"no timeouts.*independent transitions.*episode_steps="):
        independent = load_dataset(rows, **UNIT)
    assert independent.episode is None
    assert len(independent) == 7
    assert independent.terminations.tolist() == [False, False, True, False, False, False, False]


@pytest.mark.parametrize("has_next", [True, False])
def test_episode_steps_stand_in_for_timeouts(tmp_path: Path, has_next: bool) -> None:
    changes = {} if has_next else {"next_observations": None}
    recorded = load(write_hdf5(tmp_path / "a.hdf5", d4rl(**changes)))
    cut = load(write_hdf5(tmp_path / "b.hdf5", d4rl(timeouts=None, **changes)), episode_steps=4)
    agree(recorded, cut)
    assert recorded.spec.fingerprint == cut.spec.fingerprint
    shorter = load(
        tmp_path / "b.hdf5", episode_steps=2
    )  # cuts after rows 1, 4 and 6, where 6 is a lone row, which nothing follows
    assert shorter.episode.tolist() == ([0, 0, 1, 2, 2, 3, 3] if has_next else [0, 1, 2, 3])
    with pytest.raises(
        ValueError, match=r"episode_steps only where nothing says .*a\.hdf5 does: leave it out"
    ):
        load(tmp_path / "a.hdf5", episode_steps=4)
    with pytest.raises(ValueError, match=r"episode_steps to be a whole number, 1 to .*, got 0"):
        load(tmp_path / "b.hdf5", episode_steps=0)


def test_episode_steps_by_counting() -> None:
    rng = np.random.default_rng(0)
    terminations, steps, count = rng.random(200) < 0.15, 5, 0
    episode, number = [], 0
    for terminated in terminations:
        episode.append(number)
        count += 1
        if terminated or count == steps:
            number, count = number + 1, 0
    arrays = {
        "observations": np.zeros((200, 1)),
        "next_observations": np.zeros((200, 1)),
        "actions": np.zeros((200, 1)),
        "rewards": np.zeros(200),
    }
    assert (
        read_arrays({**arrays, "terminations": terminations}, episode_steps=steps).episode.tolist()
        == episode
    )


def test_columns_nobody_knows_are_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ignored: returns, values"):
        load_dataset(
            write_hdf5(tmp_path / "a.hdf5", d4rl(values=np.zeros(3), returns=np.zeros(7))), **UNIT
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"terminals": None},
            r"expected the columns observations, actions, rewards, terminals of D4RL, got .*: "
            r"'terminals' is missing",
        ),
        ({"observations": None}, "'observations' is missing"),
        ({"rewards": np.zeros(6)}, "same length, got actions 7, observations 7, rewards 6"),
        ({"timeouts": np.zeros(6)}, "same length, got .*truncations 6"),
        (
            {"next_observations": np.zeros((7, 3))},
            "next_observations with the shapes of observations",
        ),
        ({"actions": np.zeros((7, 1), np.int64)}, "discrete actions are not supported yet"),
        (
            {"observations": np.zeros((7, 4), np.uint8), "next_observations": None},
            "vectors of bytes are not supported yet: observations is uint8",
        ),
        (
            {"observations": np.diag([1, 1, 1, 1, np.nan, 1, 1])[:, :5], "next_observations": None},
            "observations, got nan in row [34]; 1 of 6",
        ),
        (
            {"rewards": np.array([0, 0, np.inf, 0, 0, 0, 0])},
            "expected finite rewards, got inf in row 2",
        ),
        ({"terminals": np.full(7, 3)}, r"expected terminations of booleans, got 3 in row 0"),
        ({"rewards": np.array([b"a"] * 7)}, "expected rewards to be an array of numbers"),
        (
            {"episode_0": {"actions": np.zeros((3, 1))}},
            "episodes, as Minari writes them: give the id",
        ),
    ],
)
def test_malformed_d4rl_files_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        load(write_hdf5(tmp_path / "a.hdf5", d4rl(**changes)))


def test_what_is_no_file_or_another_kind_of_file(tmp_path: Path) -> None:
    for name, content, message in (
        (
            "text.hdf5",
            b"observations,actions\n",
            r"text\.hdf5: cannot be read as HDF5 .*truncated, or another kind of file",
        ),
        (
            "text.npz",
            b"observations,actions\n",
            r"text\.npz: cannot be read as a \.npz: it is truncated",
        ),
        ("empty.hdf5", b"", "cannot be read as HDF5"),
        ("empty.npz", b"", r"cannot be read as a \.npz"),
        (
            "table.parquet",
            b"PAR1",
            r"expected a \.npz, \.csv, \.hdf5 or \.h5 file .*got .*table\.parquet",
        ),
    ):
        (tmp_path / name).write_bytes(content)
        for path in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(ValueError, match=message):
                load(path)
    whole = write_hdf5(tmp_path / "whole.hdf5", d4rl()).read_bytes()
    (tmp_path / "half.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        load(tmp_path / "half.hdf5")
    (tmp_path / "folder.hdf5").mkdir()
    with pytest.raises(
        IsADirectoryError, match=r"got the folder .*folder\.hdf5: give the file in it"
    ):
        load(tmp_path / "folder.hdf5")
    with pytest.raises(FileNotFoundError, match=r"gone\.h5 does not exist"):
        load(str(tmp_path / "gone.h5"))
    np.savez(
        tmp_path / "objects.npz",
        observations=np.array([{}], object),
        actions=np.zeros((1, 1)),
        rewards=np.zeros(1),
    )
    with pytest.raises(TypeError, match="expected observations to be an array of numbers"):
        load(tmp_path / "objects.npz")


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_hdf5(tmp_path / "a.hdf5", d4rl())
    assert len(load("~/a.hdf5")) == 7


@pytest.mark.parametrize("nested", [False, True])
def test_a_d4rl_file_of_a_minari_set_is_the_same_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    rng, episodes = np.random.default_rng(0), []
    for length, terminated in ((4, True), (1, False), (6, False), (3, True)):
        observed = {"z": rng.normal(size=(length + 1, 3)), "a": rng.normal(size=(length + 1, 2))}
        last = np.arange(length) == length - 1
        episodes.append(
            {
                "observations": observed if nested else observed["z"],
                "actions": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
                "rewards": rng.normal(size=length),
                "terminations": last & terminated,
                "truncations": last & (not terminated),
            }
        )
    nothing = {"env_spec_json": None, "eval_env_spec_json": None, "reference_scores": None}
    write_dataset(
        "test/plain-v0", episodes, **nothing, description="made by hand", algorithm="none"
    )

    def joined(key: str, part: slice) -> Any:
        values = [episode[key] for episode in episodes]
        if isinstance(values[0], dict):
            return {
                leaf: np.concatenate([value[leaf][part] for value in values]) for leaf in values[0]
            }
        return np.concatenate([value[part] for value in values])

    columns = {
        "observations": joined("observations", slice(-1)),
        "next_observations": joined("observations", slice(1, None)),
    }
    columns |= {
        "actions": joined("actions", slice(None)),
        "rewards": joined("rewards", slice(None)),
    }
    columns |= {
        "terminals": joined("terminations", slice(None)),
        "timeouts": joined("truncations", slice(None)),
    }
    one, two = load("test/plain-v0"), load(write_hdf5(tmp_path / "a.hdf5", columns))
    agree(one, two)
    assert one.spec == two.spec
    flat = load(
        write_hdf5(
            tmp_path / "flat.hdf5", {k: v for k, v in columns.items() if k != "next_observations"}
        )
    )
    kept = ~torch.from_numpy(columns["timeouts"])
    for name in ("observations", "actions", "rewards", "terminations"):
        assert torch.equal(getattr(flat, name), getattr(one, name)[kept]), name
    going_on = ~flat.terminations
    assert torch.equal(flat.next_observations[going_on], one.next_observations[kept][going_on])


# OGBench: two trajectories of 4 transitions; the task is done in the second row of the first one,
# which goes on all the same.
STATES = np.arange(10.0)[:, None] * 10
TASK = {
    "rewards": np.array([-1, 0, -1, -1, -1, -1, -1, -1.0]),
    "masks": np.array([1, 0, 1, 1, 1, 1, 1, 1.0]),
}


def ogbench(form: str, **changes: Any) -> dict[str, Any]:
    """`published` has an observation more per trajectory than transitions; so has `compact`,
    whose terminals stand twice.
    """
    rows, last = [0, 1, 2, 3, 5, 6, 7, 8], np.arange(10) % 5 == 4
    columns: dict[str, Any] = {"actions": np.linspace(-1, 1, 10, dtype=np.float32)[:, None]}
    columns |= {"observations": STATES, "qpos": np.zeros((10, 3))}
    if form == "regular":
        columns = {key: value[rows] for key, value in columns.items()}
        columns |= {
            "next_observations": STATES[1:][rows],
            "terminals": np.roll(last, -1)[rows],
            **TASK,
        }
    else:
        columns |= {
            key: np.insert(value, [4, 8], 0) for key, value in TASK.items()
        }  # of the last observation: never to be read
        columns["terminals"] = last
        if form == "compact":
            columns |= {
                "valids": (~last).astype(np.float32),
                "terminals": (last | np.roll(last, -1)).astype(np.float32),
            }
    return {key: value for key, value in {**columns, **changes}.items() if value is not None}


def write_npz(path: Path, columns: dict[str, Any]) -> Path:
    np.savez_compressed(path, **columns)
    return path


@pytest.mark.parametrize("form", ["published", "regular", "compact"])
def test_ogbench_in_its_three_forms(
    tmp_path: Path, form: str, recwarn: pytest.WarningsRecorder
) -> None:
    data = load_dataset(write_npz(tmp_path / "a.npz", ogbench(form)), **UNIT)
    assert data.observations[:, 0].tolist() == [0, 10, 20, 30, 50, 60, 70, 80]
    assert data.next_observations[:, 0].tolist() == [10, 20, 30, 40, 60, 70, 80, 90]
    assert data.actions[:, 0].tolist() == pytest.approx(
        (np.array([0, 1, 2, 3, 5, 6, 7, 8]) * 2 / 9 - 1).tolist(), abs=1e-6
    )
    assert data.rewards.tolist() == [-1, 0, -1, -1, -1, -1, -1, -1]
    assert data.terminations.tolist() == [
        False,
        True,
        False,
        False,
        False,
        False,
        False,
        False,
    ]  # masks, not terminals
    assert data.episode.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]  # terminals, not masks
    assert data.initial_observations.tolist() == [[0], [50]]
    assert data.rows.tolist() == (
        [0, 1, 2, 3, 4, 5, 6, 7] if form == "regular" else [0, 1, 2, 3, 5, 6, 7, 8]
    )
    described = data.describe()
    assert (described.terminations, described.truncations, described.dropped_rows) == (1, 2, 0)
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    # What comes after the task was done is no part of the return of what came before.
    assert data.returns_to_go(data.rewards, 0.5).tolist() == [
        -1,
        0,
        -1.5,
        -1,
        -1.875,
        -1.75,
        -1.5,
        -1,
    ]


def test_without_masks_or_rewards_ogbench_files_say_what_to_add(tmp_path: Path) -> None:
    for form in ("published", "regular", "compact"):
        play = write_npz(tmp_path / "play.npz", ogbench(form, rewards=None, masks=None))
        with pytest.raises(
            ValueError,
            match=(
                r"without rewards and masks: this is a goal-conditioned OGBench "
                r"file.*np\.savez\("
            ),
        ):
            load(play)
        with np.load(play) as file:  # the advice, followed
            whole = ogbench(form)
            np.savez(
                tmp_path / "task.npz", **dict(file), rewards=whole["rewards"], masks=whole["masks"]
            )
        assert (
            load(tmp_path / "task.npz").spec.fingerprint
            == load(write_npz(tmp_path / "whole.npz", whole)).spec.fingerprint
        )
        with pytest.raises(
            ValueError,
            match=(
                r"without masks: in an OGBench file terminals .*in a D4RL file terminals is "
                r"what terminates"
            ),
        ):
            load(write_npz(tmp_path / "b.npz", ogbench(form, masks=None)))
        with pytest.raises(ValueError, match="without rewards: this is a goal"):
            load(write_npz(tmp_path / "b.npz", ogbench(form, rewards=None)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminals": None}, "the columns of an OGBench file, .* without terminals"),
        ({"actions": None}, "without actions"),
        ({"masks": np.ones(9)}, "masks with one number per row, 10, got 9"),
        ({"masks": np.full(10, 0.5)}, r"expected masks of booleans, got 0\.5 in row 0"),
        ({"terminals": np.full(10, 7)}, "expected terminals of booleans, got 7"),
        ({"terminals": np.zeros(9)}, "same length"),
        ({"rewards": np.zeros(9)}, "same length"),
        (
            {"observations": np.zeros((10, 8, 8, 3), np.uint8)},
            "image observations are not supported",
        ),
        ({"actions": np.zeros(10, np.int32)}, "discrete actions are not supported"),
    ],
)
def test_malformed_ogbench_files_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(write_npz(tmp_path / "a.npz", ogbench("published", **changes)))
    with pytest.raises(ValueError, match="expected no episode_steps"):
        load(write_npz(tmp_path / "b.npz", ogbench("published")), episode_steps=5)


def test_an_npz_of_arrays_or_of_d4rl_columns_is_no_ogbench_file(tmp_path: Path) -> None:
    columns = {key: value for key, value in d4rl().items() if key not in ("infos", "metadata")}
    ours = {
        {"terminals": "terminations", "timeouts": "truncations"}.get(key, key): value
        for key, value in columns.items()
    }
    expected = load(write_hdf5(tmp_path / "a.hdf5", columns))
    for name, content in (("theirs.npz", columns), ("ours.npz", ours)):
        agree(load(write_npz(tmp_path / name, content)), expected)
    mixed = {**ours, "terminals": columns["terminals"]}
    with pytest.raises(ValueError, match=r"mixed\.npz: unknown array 'terminals'"):
        load(write_npz(tmp_path / "mixed.npz", mixed))


def test_files_join_with_other_sources(tmp_path: Path) -> None:
    first, second = (
        write_hdf5(tmp_path / "a.hdf5", d4rl()),
        write_npz(tmp_path / "b.npz", ogbench("published")),
    )
    arrays = {
        "observations": np.zeros((3, 2)),
        "actions": np.zeros((3, 1)),
        "rewards": np.zeros(3),
        "terminations": [0, 0, 1],
    }
    data = load([first, arrays])
    assert data.rows.tolist() == list(range(10))
    assert data.episode.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match=r"same observations, .*a\.hdf5 and .*b\.npz"):
        load([first, second])


def test_minari_records_its_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(ValueError, match="expected episode_steps only for files and arrays"):
        load("test/plain-v0", episode_steps=3)


def test_the_command_line_takes_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_hdf5(tmp_path / "a.hdf5", d4rl(timeouts=None)))
    assert main(["data", "describe", path, "--action-bounds", "data", "--episode-steps", "4"]) == 0
    output = capsys.readouterr().out
    assert f"dataset        {path}" in output
    assert "2 (1 terminated rows, 1 episodes cut)" in output
    assert main(["data", "describe", str(tmp_path / "gone.hdf5")]) == 1
    assert "gone.hdf5 does not exist" in capsys.readouterr().err


def test_keys_with_a_slash_are_kept_apart_and_found_again() -> None:
    """ "a/b" and a -> b are two leaves, whose flat order is that of Gymnasium: sorted keys."""
    rows = np.arange(6.0)
    arrays = {
        "observations": {"a/b": rows[:, None], "a": {"b": rows[:, None] + 10, "c~": rows + 20}},
        "actions": np.linspace(-1, 1, 6)[:, None],
        "rewards": rows,
        "terminations": [0, 0, 1, 0, 0, 1],
        "truncations": np.zeros(6),
    }
    data = load_dataset(arrays, action_bounds=(-1, 1))
    assert [part.path for part in data.spec.observations.parts] == ["a/b", "a/c~0", "a~1b"]
    assert data.observations[1].tolist() == [11, 21, 1]
    native = {"a/b": np.array([1.0]), "a": {"b": np.array([11.0]), "c~": np.array(21.0)}}
    assert data.spec.observations.flatten(native).tolist() == [11, 21, 1]


def test_keys_that_are_no_text_are_refused_when_data_are_read() -> None:
    arrays = {
        "observations": {0: np.zeros((4, 1)), 1: np.ones((4, 1))},
        "actions": np.zeros((4, 1)),
        "rewards": np.zeros(4),
        "terminations": [0, 0, 0, 1],
    }
    with pytest.raises(TypeError, match=r"text as the keys of observations, got 0 \(int\)"):
        load_dataset(arrays, action_bounds=(-1, 1))


def test_keys_with_a_slash_survive_a_minari_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    steps = 3
    episode = {
        "observations": {"arm/pos": np.arange(4.0)[:, None], "clock": np.arange(4.0)[:, None] * 2},
        "actions": np.linspace(-1, 1, steps, dtype=np.float32)[:, None],
        "rewards": np.arange(3.0),
        "terminations": [False, False, True],
        "truncations": [False] * 3,
    }
    write_dataset(
        "test/slash-v0",
        [episode],
        env_spec_json=None,
        eval_env_spec_json=None,
        reference_scores=None,
        description="made by hand",
        algorithm="none",
    )
    data = load_dataset("test/slash-v0", action_bounds=(-1, 1))
    assert [part.path for part in data.spec.observations.parts] == ["arm~1pos", "clock"]
    assert data.observations.tolist() == [[0, 0], [1, 2], [2, 4]]
