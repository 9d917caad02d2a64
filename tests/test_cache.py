"""The cache of trained parts: where it lies, what it lists, what clearing deletes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ddice.core import cache
from ddice.core.cache import Entry, cache_folder, clear, entries, entry

ABOUT = {"stage": "prior", "steps": 3, "seed": 0, "data": "a.npz", "parts": ["diffusion"]}


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))


def make(stage: str, key: str, size: int, age: int) -> Entry:
    made = entry(stage, key)
    made.describe(ABOUT)
    made.state.write_bytes(b"x" * size)
    os.utime(made.folder / "about.json", (1e9 - age, 1e9 - age))
    return made


def test_the_folder_is_read_from_the_environment_at_each_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in (
        lambda: monkeypatch.setenv("DDICE_CACHE", ""),
        lambda: monkeypatch.delenv("DDICE_CACHE"),
    ):
        unset()
        assert cache_folder() == tmp_path / ".cache" / "ddice"


def test_an_entry_has_its_files_in_one_folder_and_makes_none_by_itself(tmp_path: Path) -> None:
    found = entry("backend", "0" * 32)
    assert {path.parent for path in (found.state, found.checkpoint, found.metrics)} == {
        tmp_path / "cache" / "backend" / ("0" * 32)
    }
    assert len({found.state, found.checkpoint, found.metrics}) == 3
    assert not found.folder.exists()
    assert found.about == {}


def test_entries_are_listed_oldest_first_with_what_they_are() -> None:
    assert entries() == []
    new, old = make("backend", "1" * 32, 10, age=0), make("prior", "2" * 32, 1000, age=50)
    assert entries() == [old, new]
    assert {name: old.about[name] for name in ABOUT} == ABOUT
    assert set(old.about) == {*ABOUT, "created"}
    assert old.size == 1000 + (old.folder / "about.json").stat().st_size


def test_clear_frees_what_it_says_and_touches_nothing_else(tmp_path: Path) -> None:
    made = [make("prior", "1" * 32, 10, age=0), make("backend", "2" * 32, 1000, age=50)]
    mine = cache_folder() / "prior" / "of another program.txt"
    mine.write_text("keep")
    expected = sum(one.size for one in made)
    assert clear() == expected
    assert entries() == []
    assert not any(one.folder.exists() for one in made)
    assert mine.read_text() == "keep"
    assert clear() == 0


def test_a_description_survives_a_crash_while_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make("prior", "1" * 32, 10, age=0)

    def crash(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="No space"):
        made.describe({**ABOUT, "steps": 4})
    assert json.loads((made.folder / "about.json").read_text())["steps"] == 3
    assert cache.entries() == [made]


def test_no_home_folder_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDICE_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(OSError, match="no home folder to keep the cache in: set DDICE_CACHE"):
        cache_folder()


def no_home() -> Path:
    """As pathlib answers for a user id that the system does not know, without HOME."""
    raise RuntimeError("Could not determine home directory.")


def test_a_linked_entry_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "about.json").write_text("{}")
    (outside / "state.safetensors").write_bytes(b"x" * 4096)
    make("prior", "1" * 32, 100, age=0)
    (cache_folder() / "prior" / ("2" * 32)).symlink_to(outside)
    linked = make("prior", "3" * 32, 100, age=0)
    linked.metrics.symlink_to(outside / "state.safetensors")
    assert sum(found.size for found in entries()) < 4096
    assert clear() < 4096
    assert entries() == []
    assert sorted(path.name for path in outside.iterdir()) == ["about.json", "state.safetensors"]
    assert len((outside / "state.safetensors").read_bytes()) == 4096
