"""LeRobot's folders, written here as its versions 2 and 3 lay them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ddice
from ddice.cli import main

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

BOUNDS = (-2, 2)
LENGTHS = (3, 4)


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))


def rows() -> dict[str, Any]:
    """Two episodes; both are done at their last row, the first with success."""
    count = sum(LENGTHS)
    done = [False, False, True, False, False, False, True]
    return {
        "observation.state": [[float(row), -float(row)] for row in range(count)],
        "action": [[row / 10] for row in range(count)],
        "next.reward": [float(row) for row in range(count)],
        "next.done": done,
        "next.success": [False, False, True, False, True, False, False],
        "timestamp": [0.1 * row for row in range(count)],
        "frame_index": [0, 1, 2, 0, 1, 2, 3],
        "episode_index": [0, 0, 0, 1, 1, 1, 1],
        "index": list(range(count)),
        "task": ["push"] * count,
    }


def write(
    folder: Path,
    columns: dict[str, Any],
    *,
    files: Sequence[tuple[str, slice]] = (("data/chunk-000/file-000.parquet", slice(None)),),
    pictures: Sequence[str] = (),
    frames: int | None = None,
) -> str:
    features = {name: {"dtype": "float32", "shape": [1]} for name in columns}
    features |= {name: {"dtype": "video", "shape": [96, 96, 3]} for name in pictures}
    info = {"codebase_version": "v3.0", "total_frames": frames or sum(LENGTHS)}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps({**info, "features": features}))
    for name, part in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(
            pyarrow.table({key: column[part] for key, column in columns.items()}), path
        )
    return str(folder)


EPISODES = (
    ("data/chunk-000/episode_000000.parquet", slice(0, 3)),
    ("data/chunk-000/episode_000001.parquet", slice(3, 7)),
)


@pytest.mark.filterwarnings("ignore:.*1 of 7 rows dropped")
@pytest.mark.parametrize("files", [EPISODES, EPISODES[::-1]], ids=["in order", "as they come"])
def test_episodes_terminate_by_success_and_are_cut_otherwise(
    files: Sequence[Any], tmp_path: Path
) -> None:
    source = write(tmp_path / "set", rows(), files=files)
    for _ in range(2):  # the second time from the cache
        data = ddice.load_dataset(source, action_bounds=BOUNDS)
        assert data.observations.tolist() == [[row, -row] for row in (0, 1, 2, 3, 4, 5)]
        assert data.next_observations[:, 0].tolist() == [1, 2, 2, 4, 5, 6]
        assert data.terminations.tolist() == [False, False, True, False, False, False]
        assert data.episode.tolist() == [0, 0, 0, 1, 1, 1]
        assert data.rewards.tolist() == [0, 1, 2, 3, 4, 5]
        # [-2, 2] to [-1, 1]
        np.testing.assert_allclose(data.actions[:, 0], np.arange(6) / 20, atol=1e-6)
    assert ddice.load_dataset(Path(source), action_bounds=BOUNDS, cache=False).describe().name


@pytest.mark.filterwarnings("ignore:.*rows dropped")
def test_several_observations_and_images(tmp_path: Path) -> None:
    columns = rows()
    columns["observation.environment_state"] = [[10.0 + row] for row in range(7)]
    pictures = ["observation.images.top"]
    source = write(tmp_path / "set", columns, pictures=pictures)
    with pytest.warns(UserWarning, match=r"images that are not read: observation\.images\.top"):
        data = ddice.load_dataset(source, action_bounds=BOUNDS)
    assert [part.path for part in data.spec.observations.parts] == ["environment_state", "state"]
    assert data.observations[1].tolist() == [11, 1, -1]


@pytest.mark.filterwarnings("ignore:.*rows dropped", "ignore:.*no truncations were given")
def test_done_alone_is_a_cut_and_that_is_said(tmp_path: Path) -> None:
    columns = rows()
    del columns["next.success"]
    source = write(tmp_path / "set", columns)
    with pytest.warns(UserWarning, match="every episode counts as cut"):
        data = ddice.load_dataset(source, action_bounds=BOUNDS)
    assert not data.terminations.any()
    assert data.rows.tolist() == [0, 1, 3, 4, 5]
    names = {
        "observations": "observation.state",
        "actions": "action",
        "rewards": "next.reward",
        "terminations": "next.done",
    }
    with pytest.warns(UserWarning, match="columns that are not read: timestamp"):
        data = ddice.load_dataset(source, action_bounds=BOUNDS, columns=names)
    assert data.terminations.tolist() == columns["next.done"]


def _without(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(columns: dict[str, Any]) -> None:
        for name in names:
            del columns[name]

    return change


@pytest.mark.parametrize(
    ("change", "frames", "message"),
    [
        (_without("next.reward"), None, "'next.reward' is missing; columns="),
        (_without("observation.state"), None, "expected observations of numbers, got none"),
        (
            lambda columns: columns["action"].__setitem__(2, [0.0, 0.0]),
            None,
            r"the lists in file-000\.parquet: action to have one length, got \[1, 2\]",
        ),
        (
            lambda columns: columns["next.reward"].__setitem__(2, None),
            None,
            r"file-000\.parquet: next\.reward without gaps, got 1 empty places",
        ),
        (_without(), 9, "the 9 rows that meta/info.json tells of, got 7 below data/"),
    ],
)
def test_what_cannot_be_read_is_named(
    change: Callable[[dict[str, Any]], None], frames: int | None, message: str, tmp_path: Path
) -> None:
    columns = rows()
    change(columns)
    source = write(tmp_path / "set", columns, frames=frames)
    with pytest.raises(ValueError, match=message):
        ddice.load_dataset(source, action_bounds=BOUNDS)


def test_damaged_folders_and_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(write(tmp_path / "set", rows()))
    (table,) = folder.rglob("*.parquet")
    whole = table.read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], b""):
        table.write_bytes(content)
        with pytest.raises(ValueError, match=r"file-000\.parquet cannot be read as Parquet"):
            ddice.load_dataset(str(folder), action_bounds=BOUNDS)
    table.unlink()
    with pytest.raises(ValueError, match=r"expected \.parquet files below data/, got none"):
        ddice.load_dataset(str(folder), action_bounds=BOUNDS)
    for content in ("[]", "{", '{"features": 3}'):
        (folder / "meta/info.json").write_text(content)
        assert main(["data", "describe", str(folder), "--action-bounds", "[-2, 2]"]) == 1
        assert "info.json" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    other = write(tmp_path / "other", rows())
    with pytest.raises(ImportError, match=r"pip install 'ddice\[lerobot\]'"):
        ddice.load_dataset(other, action_bounds=BOUNDS)
