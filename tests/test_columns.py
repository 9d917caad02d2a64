"""Data under the names of others: three rows of one episode, whichever way they come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ddice
from ddice.runs.recipe import DataSource

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped", "ignore:columns that are not read")

# Two numbers of state and one of action, three steps; the last one terminates.
X, Y, ACTION = [0.0, 1.0, 2.0], [5.0, 6.0, 7.0], [-1.0, 0.5, 1.0]
REWARD, DONE, CUT = [0.0, 0.0, 9.0], [False, False, True], [False, False, False]
OURS = {
    "observations": np.stack([X, Y], 1),
    "actions": np.array(ACTION)[:, None],
    "rewards": REWARD,
    "terminations": DONE,
    "truncations": CUT,
}
NAMES = {
    "observations": ("x", "y"),
    "actions": ("u",),
    "rewards": "reward",
    "terminations": "done",
    "truncations": "timeout",
}
TABLE = {"x": X, "y": Y, "u": ACTION, "reward": REWARD, "done": DONE, "timeout": CUT}
BOUNDS = (-1.0, 1.0)


def fingerprint(source: Any, columns: Mapping[str, Any] | None = None, **options: Any) -> str:
    data = ddice.load_dataset(source, action_bounds=BOUNDS, columns=columns, **options)
    return data.spec.fingerprint


@pytest.fixture(scope="module")
def expected() -> str:
    return fingerprint(OURS)


def test_a_dict_of_columns(expected: str) -> None:
    table = {name: np.array(column) for name, column in TABLE.items()}
    assert fingerprint(table, NAMES) == expected


def test_columns_of_several_numbers_are_put_side_by_side(expected: str) -> None:
    table = {"x": np.array(X)[:, None], "rest": np.array(Y), **TABLE, "note": np.zeros(3)}
    del table["y"]
    names = {**NAMES, "observations": ["x", "rest"]}
    with pytest.warns(UserWarning, match="columns that are not read: note"):
        assert fingerprint(table, names) == expected


def test_what_has_our_names_already_needs_no_mapping(expected: str) -> None:
    arrays: dict[str, Any] = {**OURS, "obs": OURS["observations"]}
    del arrays["observations"]
    assert fingerprint(arrays, {"observations": "obs"}) == expected


def test_a_npz_and_its_cache_know_the_mapping(tmp_path: Path, expected: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **TABLE)
    assert fingerprint(str(path), NAMES) == expected
    turned = {**NAMES, "observations": ("y", "x")}
    assert fingerprint(str(path), turned) == fingerprint(
        {**OURS, "observations": np.stack([Y, X], 1)}
    )


def test_a_npz_with_words_of_ogbench_may_be_somebody_elses(tmp_path: Path, expected: str) -> None:
    path = tmp_path / "b.npz"
    np.savez(path, obs=OURS["observations"], act=OURS["actions"], rew=REWARD, terminals=DONE)
    with pytest.raises(ValueError, match=r"give columns=\{'observations': 'obs', 'actions': 'act'"):
        fingerprint(str(path))
    names = {
        "observations": "obs",
        "actions": "act",
        "rewards": "rew",
        "terminations": "terminals",
    }
    assert fingerprint(str(path), names, episode_steps=3) != ""


def test_hdf5_with_paths(tmp_path: Path, expected: str) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["state/pose"] = OURS["observations"]
        file["u"], file["reward"], file["done"], file["timeout"] = ACTION, REWARD, DONE, CUT
    assert fingerprint(path, {**NAMES, "observations": "state/pose"}) == expected


def test_csv(tmp_path: Path, expected: str) -> None:
    path = tmp_path / "a.csv"
    rows = zip(*TABLE.values(), strict=True)
    lines = [",".join([*TABLE, "note"]), *(",".join([*map(str, row), "red"]) for row in rows)]
    path.write_text("\n".join(lines) + "\n\n")
    with pytest.warns(UserWarning, match="columns that are not read: note"):
        assert fingerprint(path, NAMES) == expected
    with pytest.raises(ValueError, match="line 2: expected a number in 'note', got 'red'"):
        fingerprint(path, {**NAMES, "actions": "note"})
    source = DataSource(source=str(path), action_bounds=BOUNDS, columns=NAMES)
    assert source.load().spec.fingerprint == expected
    assert DataSource.model_validate_json(source.model_dump_json()) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,x\n1,2\n", "expected a first row with a name for each column"),
        ("", "expected a first row with a name for each column"),
        ("x,y\n1\n", "line 2: expected 2 values, got 1"),
    ],
)
def test_a_csv_that_is_no_table(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        fingerprint(path, {"observations": ["x"]})


class DataFrame:
    """As much of a frame as pandas and polars have in common."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name: str) -> Any:
        column = self._columns[name]

        class Series:
            def to_numpy(self) -> np.ndarray:
                return column

        return Series()


def frames() -> list[Any]:
    """The table as a frame, with the state as a column of lists and as two columns."""
    lists = np.empty(3, dtype=object)
    lists[:] = [[x, y] for x, y in zip(X, Y, strict=True)]
    state = {"state": lists} | {name: np.array(TABLE[name]) for name in list(TABLE)[2:]}
    return [DataFrame({name: np.array(column) for name, column in TABLE.items()}), DataFrame(state)]


def test_frames(expected: str) -> None:
    flat, nested = frames()
    assert fingerprint(flat, NAMES) == expected
    assert fingerprint(nested, {**NAMES, "observations": "state"}) == expected
    ragged = np.empty(3, dtype=object)
    ragged[:] = [[1.0], [1.0, 2.0], [1.0]]
    with pytest.raises(ValueError, match=r"the lists in the column 'state' .* got \[1, 2\]"):
        fingerprint(DataFrame({"state": ragged}), {"observations": "state"})


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_of_libraries(library: str, expected: str) -> None:
    frame = pytest.importorskip(library).DataFrame(TABLE)
    assert fingerprint(frame, NAMES) == expected
    listed = pytest.importorskip(library).DataFrame(
        {"state": [[x, y] for x, y in zip(X, Y, strict=True)], **dict(list(TABLE.items())[2:])}
    )
    assert fingerprint(listed, {**NAMES, "observations": "state"}) == expected


def test_names_of_other_libraries_are_answered_with_the_mapping() -> None:
    arrays = {
        "obs": OURS["observations"],
        "next_obs": np.stack([[1.0, 2.0, 3.0], [6.0, 7.0, 8.0]], 1),
        "action": OURS["actions"],
        "reward": REWARD,
        "done": DONE,
        "truncated": CUT,
    }
    mapping = {
        "observations": "obs",
        "next_observations": "next_obs",
        "actions": "action",
        "rewards": "reward",
        "terminations": "done",
        "truncations": "truncated",
    }
    with pytest.raises(ValueError, match="names of another library") as caught:
        fingerprint(arrays)
    assert f"give columns={mapping}" in str(caught.value)
    assert "'done' is also true where time ran out" in str(caught.value)
    assert fingerprint(arrays, mapping)
    del arrays["obs"]
    with pytest.raises(ValueError, match="with observations added"):
        fingerprint(arrays)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"observation": "x"}, "unknown array 'observation': did you mean 'observations'"),
        ({"observations": "xx"}, "unknown column 'xx'"),
        ({**NAMES, "observations": ("x", "short")}, "of the same length"),
    ],
)
def test_a_mapping_that_does_not_fit(columns: Mapping[str, Any], message: str) -> None:
    table = {name: np.array(column) for name, column in TABLE.items()} | {"short": np.zeros(2)}
    with pytest.raises(ValueError, match=message):
        fingerprint(table, columns)


def test_minari_needs_no_names(small_maze: str) -> None:
    with pytest.raises(ValueError, match="Minari names its columns itself"):
        ddice.load_dataset(small_maze, columns={"observations": "obs"})


# -- robomimic


def robomimic(path: Path, *, next_obs: bool, images: bool = False) -> Path:
    """Two demonstrations, the tenth before the second in the order of names: the first ends done,
    the second is only cut.
    """
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, first, done in (("demo_2", 0.0, [0, 1]), ("demo_10", 10.0, [0, 0, 0])):
            demo, count = file.create_group(f"data/{key}"), len(done)
            steps = first + np.arange(count + 1.0)
            obs = {"eef": steps[:, None], "object": np.stack([steps, -steps], 1)}
            for name, column in obs.items():
                demo[f"obs/{name}"] = column[:-1]
                if next_obs:
                    demo[f"next_obs/{name}"] = column[1:]
            if images:
                demo["obs/camera"] = np.zeros((count, 4, 4, 3), np.uint8)
            demo["actions"] = np.linspace(-1, 1, count)[:, None]
            demo["rewards"], demo["dones"] = np.array(done, float), done
        file["mask/train"] = np.array([b"demo_2"])
    return path


def test_robomimic(tmp_path: Path) -> None:
    data = ddice.load_dataset(
        robomimic(tmp_path / "low_dim.hdf5", next_obs=True), action_bounds=BOUNDS
    )
    assert data.observations.tolist() == [
        [0, 0, 0],
        [1, 1, -1],
        [10, 10, -10],
        [11, 11, -11],
        [12, 12, -12],
    ]
    assert data.next_observations[:, 0].tolist() == [1, 2, 11, 12, 13]
    assert data.terminations.tolist() == [False, True, False, False, False]
    assert data.episode.tolist() == [0, 0, 1, 1, 1]
    assert data.rewards.tolist() == [0, 1, 0, 0, 0]


def test_robomimic_without_next_observations_and_with_images(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "image.hdf5", next_obs=False, images=True)
    with pytest.warns(UserWarning, match="images that are not read: camera"):
        data = ddice.load_dataset(path, action_bounds=BOUNDS)
    assert data.observations[:, 0].tolist() == [0, 1, 10, 11]
    assert data.next_observations[:, 0].tolist()[2:] == [11, 12]


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (("dones",), "'dones' is missing"),
        (("obs/eef", "obs/object"), "got images alone: camera"),
    ],
)
def test_robomimic_that_lacks_something(
    gone: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py")
    path = robomimic(tmp_path / "a.hdf5", next_obs=False, images=True)
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            for name in gone:
                del demo[name]
    with pytest.raises(ValueError, match=message):
        ddice.load_dataset(path, action_bounds=BOUNDS)
