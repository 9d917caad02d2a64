"""Errors of the libraries below never come bare: what is damaged or odd is told in words of ours,
whichever of them noticed it.
"""

from __future__ import annotations

import json
import shutil
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import small
import torch

import ddice
from ddice.cli import main
from ddice.collection import collect
from ddice.dice_backends import PiecewiseF
from ddice.policies.evaluation.success import Reports

PACKAGE = str(Path(ddice.__file__).parent)
BOUNDS = (-2, 2)
SET = "test/damaged-v0"
Change = Callable[[Path], None]
pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")


@pytest.fixture(scope="module")
def minari(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets with a whole one."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        patch.setenv("DDICE_CACHE", str(folder / "cache"))
        collect(SET, small.SHORT, "random", episodes=3, progress=False)
    return folder


@pytest.fixture
def data(minari: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of a copy of it lie, which `load` reads."""
    shutil.copytree(minari / SET, tmp_path / SET)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path / SET / "data"


def metadata(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "metadata.json"
        content = {**json.loads(path.read_text()), **fields}
        path.write_text(json.dumps({key: one for key, one in content.items() if one != "gone"}))

    return change


def episodes(change: Callable[[h5py.File], None]) -> Change:
    def within(folder: Path) -> None:
        with h5py.File(folder / "main_data.hdf5", "a") as file:
            change(file)

    return within


def cut(folder: Path) -> None:
    path = folder / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:3000])


def gone(folder: Path) -> None:
    (folder / "main_data.hdf5").unlink()


@pytest.mark.parametrize(
    "change",
    [
        metadata(data_format="gone"),
        metadata(data_format=[]),
        metadata(observation_space=None),
        metadata(action_space="x"),
        metadata(env_spec=3),
        metadata(dataset_id=None),
        metadata(minari_version="gone"),
        metadata(total_episodes=None),
        metadata(total_episodes="x"),
        metadata(ref_min_score="x", ref_max_score=1.0),
        episodes(lambda file: file["episode_0"].__delitem__("rewards")),
        episodes(lambda file: file.__delitem__("episode_1")),
        cut,
        gone,
    ],
)
def test_a_damaged_dataset_of_minari_is_told_in_words(
    change: Change, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(ddice.load_dataset(SET, cache=False)) == 60  # three times a horizon of 20
    change(data)
    with pytest.raises(ValueError, match=r"cannot be read \(.*it is damaged, or of a version"):
        ddice.load_dataset(SET, cache=False)
    assert main(["data", "describe", SET]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def columns() -> dict[str, np.ndarray]:
    arrays = small.arrays()
    names = {"terminations": "terminals", "truncations": "timeouts"}
    return {names.get(key, key): value for key, value in arrays.items()}


def in_words(path: Path) -> str | None:
    """What is said of a file, None where it can be read; fails for an error of a library."""
    caught: Exception | None = None
    try:
        ddice.load_dataset(path, action_bounds=BOUNDS, out_of_bounds="clip", cache=False)
    except (ValueError, TypeError) as error:
        caught = error
    if caught is None:
        return None
    last = traceback.extract_tb(caught.__traceback__)[-1]
    assert last.filename.startswith(PACKAGE), f"{last.filename}: {caught!r}"
    assert str(caught).startswith(str(path))
    return str(caught)


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_flipped_bits_of_files_are_told_in_words(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"whole{suffix}"
    if suffix == ".npz":
        np.savez(path, **columns())
    else:
        with h5py.File(path, "w") as file:
            for key, column in columns().items():
                file[key] = column
    assert in_words(path) is None
    whole, random = path.read_bytes(), np.random.default_rng(0)
    said = []
    for _ in range(60):
        content = bytearray(whole)
        for place in random.integers(0, min(3000, len(whole)), 4):
            content[place] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        said.append(in_words(path))
    assert sum(one is not None for one in said) > 20


def test_links_that_lead_out_of_a_file_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    for link in (h5py.ExternalLink("/dev/zero", "x"), h5py.SoftLink("/nowhere")):
        with h5py.File(path, "w") as file:
            for key, column in columns().items():
                file[key] = column
            del file["actions"]
            file["actions"] = link
        said = in_words(path)
        assert said is not None
        assert said.endswith("expected actions in the file itself, got a link that leads elsewhere")


def test_odd_tables_are_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for content in (b"a,b\n\xff,\xfe\n", b"a,b\n" + b"1" * 200_000 + b",1\n"):
        path.write_bytes(content)
        said = in_words(path)
        assert said is not None
        assert "cannot be read as a table in UTF-8" in said
    strange = tmp_path / "a.npz"
    with zipfile.ZipFile(strange, "w", zipfile.ZIP_BZIP2) as file:
        for key, column in columns().items():
            file.writestr(f"{key}.npy", b"\x93NUMPY\x01\x00" + column.tobytes())
    assert in_words(strange) is not None


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".npz", "a\0b.npz", "~nobody-x/a.npz"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="names no file") as caught:
        ddice.load_dataset(name)
    assert len(str(caught.value)) < 300


def test_masked_episodes_are_refused() -> None:
    arrays: dict[str, Any] = small.arrays()
    count = len(arrays.pop("terminations")) + 0 * len(arrays.pop("truncations"))
    ids = np.arange(count) // small.LENGTH
    arrays["episode_ids"] = np.ma.masked_array(ids, mask=ids == 3)
    with pytest.raises(ValueError, match="episode_ids without gaps, got a masked array with 10"):
        ddice.load_dataset(arrays, action_bounds=BOUNDS)
    arrays["episode_ids"] = np.ma.masked_array(ids, mask=False)
    assert ddice.load_dataset(arrays, action_bounds=BOUNDS).spec.episodes == small.EPISODES


@pytest.mark.parametrize("odd", [2.0, "2", True, None, np.ones(2)])
def test_counts_are_whole_numbers(odd: Any) -> None:
    data = ddice.load_dataset(small.arrays(), action_bounds=BOUNDS)
    with pytest.raises(TypeError, match="expected batch_size to be a whole number, got "):
        data.sample(odd, seed=0, step=0)
    for two in (np.int8(2), torch.tensor(2)):
        assert len(data.sample(two, seed=0, step=0).rewards) == 2
    if odd is not None:
        with pytest.raises(TypeError, match="expected steps to be a whole number, got "):
            PiecewiseF().fit(data, steps=odd, progress=False)
    with pytest.raises(ValueError, match="expected steps of at least 0, got -5"):
        PiecewiseF().fit(data, steps=-5, progress=False)


@pytest.mark.parametrize("name", ["goal_met", "is_solved", "arrive_dest", "task_completed"])
def test_success_under_other_names(name: str) -> None:
    reports = Reports()
    reports.read({name: False})
    reports.read({name: np.True_})
    assert (reports.ever, reports.last) == (True, True)
