from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ddice.core import storage
from ddice.core.storage import load_tensors, save_tensors, write_bytes, write_json

TENSORS = {
    "weight": torch.tensor([[1.5, -2.0], [0.0, 3e38]]),
    "step": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "special": torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=torch.float64),
}
META = {"step": 7, "spec": {"bounds": [0.5, None], "name": "größe"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "part.safetensors"
    save_tensors(path, "prior", TENSORS, META)
    return path


def test_round_trip(path: Path) -> None:
    tensors, meta = load_tensors(path, "prior")
    assert meta == {"kind": "prior", "schema": 1, **META}
    assert set(tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        torch.testing.assert_close(tensors[name], value, rtol=0, atol=0, equal_nan=True)


def test_views_and_parameters_are_saved_as_what_they_show(path: Path) -> None:
    """A transposed view and two names of one storage: what counts is the values."""
    base = torch.arange(6.0).reshape(2, 3)
    save_tensors(
        path, "prior", {"view": base.mT, "again": base, "trained": torch.nn.Parameter(base)}, {}
    )
    tensors, _ = load_tensors(path, "prior")
    assert torch.equal(tensors["view"], torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]))
    assert torch.equal(tensors["again"], base)
    assert torch.equal(tensors["trained"], base)


def test_what_was_loaded_outlives_the_file(path: Path) -> None:
    tensors, _ = load_tensors(path, "prior")
    save_tensors(
        path, "prior", {name: torch.zeros_like(value) for name, value in TENSORS.items()}, META
    )
    path.unlink()
    torch.testing.assert_close(tensors["weight"], TENSORS["weight"], rtol=0, atol=0)


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_crash_in_the_middle_leaves_the_old_content(
    path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def crash(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, function, crash)
    with pytest.raises(OSError, match="No space left"):
        save_tensors(path, "prior", {"weight": torch.zeros(1000)}, {})
    monkeypatch.undo()
    torch.testing.assert_close(
        load_tensors(path, "prior")[0]["weight"], TENSORS["weight"], rtol=0, atol=0
    )
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_an_interrupt_while_writing_leaves_the_old_content(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == old
    assert len(list(path.parent.iterdir())) == 1


def test_content_reaches_the_disk_before_the_name_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut may leave a complete name over empty content."""
    order: list[str] = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    write_bytes(tmp_path / "file", b"content")
    assert order[:2] == ["fsync", "replace"]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "recipe.json", {"b": 1, "a": [1.5, None]})
    text = (tmp_path / "a" / "recipe.json").read_text()
    assert json.loads(text) == {"b": 1, "a": [1.5, None]}
    assert text.index('"b"') < text.index('"a"')
    assert text.endswith("}\n")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_a_truncated_file(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        ValueError,
        match=(
            r"part\.safetensors cannot be read as a prior .*truncated, or not safetensors; "
            r"delete it and train again"
        ),
    ):
        load_tensors(path, "prior")


def test_a_file_of_another_format(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(ValueError, match="cannot be read as a prior"):
        load_tensors(path, "prior")


def test_a_safetensors_file_of_somebody_else(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(
        ValueError, match=r"is a safetensors file, but not one of ddice: expected a prior"
    ):
        load_tensors(path, "prior")
    save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not one of ddice"):
        load_tensors(path, "prior")


def test_another_kind(path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected .*part\.safetensors to hold a policy, got a prior"
    ):
        load_tensors(path, "policy")


def test_a_newer_schema(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SCHEMA", 2)
    save_tensors(path, "prior", TENSORS, META)
    monkeypatch.undo()
    with pytest.raises(
        ValueError,
        match=r"has schema 2, this version of ddice reads schema 1: use the version that wrote it",
    ):
        load_tensors(path, "prior")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "nothing", "prior")


def test_nothing_is_ever_unpickled(path: Path) -> None:
    """A pickle in place of the file is refused, and its code does not run."""

    class Bomb:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(path.parent / "exploded"),)

    torch.save({"weight": Bomb()}, path)
    with pytest.raises(ValueError, match="cannot be read as a prior"):
        load_tensors(path, "prior")
    assert not (path.parent / "exploded").exists()


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    """A temporary file is private; the finished one follows the umask like any other file."""
    old = os.umask(0o022)
    try:
        write_bytes(tmp_path / "file", b"content")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
