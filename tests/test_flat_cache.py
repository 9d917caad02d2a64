"""The flat cache: the same data as without it, without touching the source; damaged and outdated
entries are read again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddice.cli.main import main
from ddice.core import cache
from ddice.data import flat, load_dataset, reading
from ddice.data.minari_writer import write_dataset

h5py = pytest.importorskip("h5py")
minari = pytest.importorskip("minari")

DATA = {"action_bounds": "data"}


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.fixture(params=["fresh", "settled"])
def either_age(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the hash decides, once the time stamps alone."""
    if request.param == "settled":
        monkeypatch.setattr(flat, "SETTLED", 0)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were written a moment ago count as old."""
    monkeypatch.setattr(flat, "SETTLED", 0)


def columns(seed: int = 0, dtype: Any = np.float64) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.normal(size=(9, 3)).astype(dtype),
        "actions": rng.uniform(-1, 1, (9, 2)).astype(dtype),
        "rewards": rng.normal(size=9).astype(dtype),
        "terminations": np.arange(9) == 3,
        "truncations": np.arange(9) == 8,
        "weights": rng.random(9),
    }


def write_npz(path: Path, seed: int = 0) -> str:
    np.savez(path, **columns(seed))
    return str(path)


def write_hdf5(path: Path, dtype: Any = np.float64) -> str:
    with h5py.File(path, "w") as file:
        content = columns(dtype=dtype)
        for key, name in (
            ("actions", "actions"),
            ("rewards", "rewards"),
            ("terminations", "terminals"),
            ("truncations", "timeouts"),
        ):
            file[name] = content[key]
        # Not in sorted order, nested, and of a kind that tensors do not have.
        file["observations/z"] = content["observations"]
        file["observations/a"] = np.arange(18, dtype=np.uint16).reshape(9, 2)
        file["observations/a b/c"] = content["observations"][:, 0]
        file["observations/t"] = np.arange(9, dtype=np.float16)
    return str(path)


def write_minari(dataset_id: str = "test/plain-v0") -> str:
    rng, episodes = np.random.default_rng(0), []
    for steps in (3, 1, 4):
        observations = {
            "goal": rng.normal(size=(steps + 1, 2)),
            "b": {"x": rng.normal(size=(steps + 1, 3))},
        }
        ends = np.arange(steps) == steps - 1
        arrays = {
            "actions": rng.normal(size=(steps, 2)).astype(np.float32),
            "rewards": rng.normal(size=steps),
        }
        episodes.append(
            {
                "observations": observations,
                **arrays,
                "terminations": ends & (steps == 3),
                "truncations": ends & (steps != 3),
            }
        )
    nothing = {"env_spec_json": None, "eval_env_spec_json": None}
    write_dataset(
        dataset_id,
        episodes,
        **nothing,
        reference_scores=(1.5, 7.25),
        description="made by hand",
        algorithm="none",
    )
    return dataset_id


def write_ogbench(path: Path) -> str:
    rng, last = np.random.default_rng(0), np.arange(10) % 5 == 4
    arrays = {
        "observations": rng.normal(size=(10, 2)),
        "actions": rng.normal(size=(10, 1)).astype(np.float32),
        "rewards": rng.normal(size=10),
    }
    np.savez_compressed(path, **arrays, terminals=last, masks=np.arange(10) != 2)
    return str(path)


def independent(path: Path) -> str:
    content = columns()
    del content["truncations"]
    np.savez(
        path,
        **content,
        next_observations=content["observations"] + 1,
        initial_observations=np.ones((2, 3)),
        initial_weights=np.ones(2),
    )
    return str(path)


def selected(tmp_path: Path) -> Any:
    dataset = minari.load_dataset(write_minari())
    dataset.episode_indices = np.array([2, 0])
    return dataset


SOURCES = {
    "npz": lambda folder: write_npz(folder / "a.npz"),
    "independent": lambda folder: independent(folder / "a.npz"),
    "hdf5": lambda folder: write_hdf5(folder / "a.hdf5"),
    "big-endian": lambda folder: write_hdf5(folder / "a.hdf5", ">f4"),
    "ogbench": lambda folder: write_ogbench(folder / "a.npz"),
    "minari": lambda folder: write_minari(),
    "selection": selected,
    "list": lambda folder: [
        write_npz(folder / "a.npz"),
        write_npz(folder / "b.npz", seed=1),
        columns(2),
    ],
}


def loaded(source: Any, **options: Any) -> tuple[Any, list[str]]:
    """The data, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_dataset(source, **{**DATA, **options})
    return data, [str(one.message) for one in caught if issubclass(one.category, UserWarning)]


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddice.data import minari_reader

    def read(*_: object, **__: object) -> None:
        raise AssertionError("the source was read")

    monkeypatch.setattr(reading, "_read_file", read)
    monkeypatch.setattr(reading, "read_minari", read)
    monkeypatch.setattr(minari_reader, "_stack", read)
    monkeypatch.setattr(np, "load", read)
    monkeypatch.setattr(h5py, "File", read)


def assert_same(one: Any, two: Any) -> None:
    assert one.spec == two.spec  # fingerprints included
    assert one._provenance == two._provenance
    for name in ("_table", "rows", "episode", "initial_observations", "initial_weights"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None and b is None) or (torch.equal(a, b) and a.dtype == b.dtype), name


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_the_second_load_is_the_same_and_does_not_touch_the_source(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path)
    plain, said = loaded(source, cache=False)
    assert cache.entries() == []
    first = loaded(source)
    assert len(cache.entries()) == (2 if isinstance(source, list) else 1)
    forbid_reading(monkeypatch)
    second = loaded(source)
    for data, notes in (first, second):
        assert_same(data, plain)
        assert notes == said
    with pytest.raises(AssertionError, match="the source was read"):
        loaded(source, cache=False)


def test_views_and_spellings_share_an_entry_and_options_of_the_reader_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "a.npz")
    monkeypatch.chdir(tmp_path)
    loaded(path)
    forbid_reading(monkeypatch)
    wide = loaded(path, action_bounds=(-5, 5))[0]
    assert wide.spec.actions.high == (5, 5)
    relative = loaded(Path("a.npz"))[0]
    assert relative.describe().name == "a.npz"
    for changed in (
        lambda: loaded(path, episode_steps=3),
        lambda: loaded(shutil.copyfile(path, "b.npz")),
    ):
        with pytest.raises(AssertionError, match="was read"):
            changed()
    monkeypatch.setattr(flat, "READERS", flat.READERS + 1)
    with pytest.raises(AssertionError, match="was read"):
        loaded(path)


def damage(entry: cache.Entry, how: str) -> None:
    state, content = entry.state, entry.state.read_bytes()
    if how == "truncated":
        state.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        state.write_bytes(b"")
    elif how == "gone":
        state.unlink()
    elif how == "longer":
        state.write_bytes(content + b"\0")
    elif how == "json":
        entry.description.write_text('{"stage": "data", ')
    elif how == "list":
        entry.description.write_text("[1, 2]")
    elif how == "fields":
        entry.description.write_text('{"crc32": "none"}')
    else:
        place = int(how)
        state.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


@pytest.mark.parametrize("how", ["truncated", "empty", "gone", "longer", "json", "list", "fields"])
def test_a_damaged_entry_is_read_again_and_said(how: str, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")
    first, said = loaded(path)
    damage(cache.entries()[0], how)
    second, notes = loaded(path)
    assert_same(first, second)
    assert len(notes) == len(said) + 1
    assert "is damaged" in notes[0]
    assert "a.npz is read again" in notes[0]
    third, notes = loaded(path)
    assert notes == said
    assert_same(first, third)


def test_no_flipped_bit_is_believed(tmp_path: Path) -> None:
    """One in every 37th byte: of the header's length, its JSON, and the tensors."""
    path = write_npz(tmp_path / "a.npz")
    first, _ = loaded(path)
    whole = cache.entries()[0].state.read_bytes()
    for place in range(0, len(whole), 37):
        damage(cache.entries()[0], str(place))
        again, notes = loaded(path)
        assert "is damaged" in notes[0], place
        assert_same(first, again)
        assert cache.entries()[0].state.read_bytes() == whole


def test_an_entry_of_another_version_of_the_file_is_not_believed(tmp_path: Path) -> None:
    """As if another process had replaced it between the checksum and the reading."""
    loaded(write_npz(tmp_path / "a.npz", seed=1))
    old = cache.entries()[0].state.read_bytes()
    first, _ = loaded(write_npz(tmp_path / "a.npz"))
    entry = cache.entries()[0]
    entry.state.write_bytes(old)
    entry.description.write_text(json.dumps({**entry.about, "crc32": flat._checksum(entry.state)}))
    again, notes = loaded(tmp_path / "a.npz")
    assert "another version of the files" in notes[0]
    assert torch.equal(first._table, again._table)


def test_changed_files_are_read_again(tmp_path: Path, either_age: None) -> None:
    path = Path(write_npz(tmp_path / "a.npz"))
    before, stat = loaded(path)[0], path.stat()
    time.sleep(0.05)  # many ticks of the clock of a file system
    write_npz(path, seed=1)  # as long as before
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    after = loaded(path)[0]
    assert after.spec.fingerprint != before.spec.fingerprint
    assert_same(after, loaded(path, cache=False)[0])
    assert len(cache.entries()) == 1  # in the place of the old one
    write_npz(path)
    assert_same(loaded(path)[0], before)
    folder = tmp_path / "minari" / "test" / "plain-v0" / "data"
    first = loaded(write_minari())[0]
    fields = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps({**fields, "ref_max_score": 8.25}))
    second = loaded("test/plain-v0")[0]
    assert (first.spec.reference.expert, second.spec.reference.expert) == (7.25, 8.25)


def test_another_file_in_the_same_place_is_noticed_however_old(
    tmp_path: Path, settled: None
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    path = write_npz(tmp_path / "one" / "a.npz")
    write_npz(tmp_path / "two" / "a.npz", seed=1)
    before = loaded(path)[0]
    (tmp_path / "one").rename(
        tmp_path / "old"
    )  # which leaves the time stamps of the files as they are
    (tmp_path / "two").rename(tmp_path / "one")
    assert loaded(path)[0].spec.fingerprint != before.spec.fingerprint


def test_a_change_within_one_tick_of_the_clock_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two contents of the same size and time stamps: they differ only by their hash."""
    path = write_npz(tmp_path / "a.npz")
    for modified, changed in ((time.time_ns(), 1), (1, time.time_ns())):
        monkeypatch.setattr(
            flat, "_stamp", lambda files, stamp=(modified, changed): [[path, 1, *stamp]]
        )
        write_npz(tmp_path / "a.npz")
        before = loaded(path)[0]
        write_npz(tmp_path / "a.npz", seed=1)
        assert loaded(path)[0].spec.fingerprint != before.spec.fingerprint


def test_settled_files_are_not_hashed_and_touched_ones_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    path = write_npz(tmp_path / "a.npz")
    first = loaded(path)[0]
    os.utime(path, ns=(1, 1))  # the same content at another time
    forbid_reading(monkeypatch)
    assert_same(first, loaded(path)[0])
    monkeypatch.setattr(flat, "_content", lambda files: pytest.fail("the file was hashed"))
    assert_same(first, loaded(path)[0])


@pytest.mark.parametrize("noticed_by", ["stamp", "hash"])
def test_a_file_that_changes_while_it_is_read_is_not_kept(
    noticed_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read, now = write_npz(tmp_path / "a.npz"), reading._read_file, time.time_ns()
    if noticed_by == "hash":
        monkeypatch.setattr(flat, "_stamp", lambda files: [[path, 1, now, now]])
    else:
        monkeypatch.setattr(flat, "SETTLED", 0)

    def slowly(*arguments: Any) -> Any:
        source = read(*arguments)
        time.sleep(0.05)
        write_npz(tmp_path / "a.npz", seed=1)
        return source

    monkeypatch.setattr(reading, "_read_file", slowly)
    loaded(path)
    assert cache.entries() == []


def test_without_a_writable_folder_data_are_read_each_time_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "a.npz")
    plain, said = loaded(path, cache=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "file" / "cache"))
    data, notes = loaded(path)
    assert_same(plain, data)
    assert [note for note in notes if note not in said] == [
        note for note in notes if "cannot be written" in note
    ]
    assert len(notes) == len(said) + 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # as Python starts
        load_dataset([path, write_npz(tmp_path / "b.npz")], **DATA)
    assert sum("cannot be written" in str(one.message) for one in caught) == 1


def test_without_a_home_folder_data_are_read_each_time_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "a.npz")
    plain, said = loaded(path, cache=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DDICE_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    data, notes = loaded(path)
    assert_same(plain, data)
    (new,) = [note for note in notes if note not in said]
    assert "set DDICE_CACHE" in new
    assert "read anew each time" in new


def test_a_home_folder_that_may_not_be_entered_is_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /root is for `docker run --user`: every look into it is refused."""
    path = write_npz(tmp_path / "a.npz")
    plain, said = loaded(path, cache=False)
    forbidden = tmp_path / "forbidden"
    monkeypatch.setenv("DDICE_CACHE", str(forbidden))
    real = os.stat

    def stat(name: Any, *arguments: Any, **options: Any) -> Any:
        if str(name).startswith(str(forbidden)):
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(Path, "mkdir", lambda self, *a, **o: stat(self))
    data, notes = loaded(path)
    assert_same(plain, data)
    (new,) = [note for note in notes if note not in said]
    assert "cannot be written (Permission denied)" in new


def test_switched_off_it_neither_reads_nor_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "a.npz")
    monkeypatch.setattr(reading, "cached", lambda *_: pytest.fail("the cache was used"))
    loaded(path, cache=False)
    loaded(columns())  # nothing to gain where the arrays are here already
    assert not cache.cache_folder().exists()


def test_several_writers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, together, read = write_npz(tmp_path / "a.npz"), threading.Barrier(4), reading._read_file

    def at_once(*arguments: Any) -> Any:
        together.wait(timeout=30)  # nobody writes before all have found nothing
        return read(*arguments)

    plain = loaded(path, cache=False)[0]
    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(reading, "_read_file", at_once)
        for data in pool.map(lambda _: load_dataset(path, **DATA), range(4)):
            assert_same(data, plain)
    assert [
        found.name
        for found in cache.entries()[0].folder.iterdir()
        if found.name not in ("about.json", "state.safetensors")
    ] == []
    forbid_reading(monkeypatch)
    assert_same(loaded(path)[0], plain)


def test_what_is_loaded_can_be_changed_without_changing_the_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "a.npz")
    first = loaded(path)[0]
    entry = cache.entries()[0]
    source = flat._load(entry, entry.about, entry.about["content"])
    source.leaves[""][:] = 7
    source.actions[:] = 7
    assert flat._load(entry, entry.about, entry.about["content"]).actions.max() < 1
    forbid_reading(monkeypatch)
    assert_same(loaded(path)[0], first)


def test_the_command_line_lists_and_clears_entries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_npz(tmp_path / "a.npz")
    assert main(["data", "describe", path, "--action-bounds", "data"]) == 0
    capsys.readouterr()
    assert main(["cache", "list"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert " data " in line
    assert "8 rows" in line
    assert line.endswith(f'"{path}"  {cache.entries()[0].folder.name[:8]}')
    half = cache.entry("data", "0" * 32)
    half.folder.mkdir()
    (half.folder / ".state.safetensors.1234").write_bytes(b"of a killed process")
    for content in (
        "{",
        "[]",
        '{"stage": "data"}',
        '{"stage": "prior", "created": "", "parts": 3}',
        "\x00",
    ):
        cache.entries()[0].description.write_text(content)
        assert main(["cache", "list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        assert all(
            line.startswith("damaged") and "ddice cache clear deletes it" in line
            for line in lines[:2]
        ), lines
    assert main(["cache", "clear"]) == 0
    assert not half.folder.exists()
    assert cache.entries() == []
