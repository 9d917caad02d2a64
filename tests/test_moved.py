"""Old import paths: the same modules, with a warning that names the new path."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from ddice.core.moved import MOVED, new_name


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_module_of_today(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"ddice.{old}", raising=False)
    new = importlib.import_module(f"ddice.{MOVED[old]}")
    with pytest.warns(DeprecationWarning, match=rf"ddice\.{old} is now ddice\.{MOVED[old]}"):
        found = importlib.import_module(f"ddice.{old}")
    assert found is new
    assert found.__name__ == f"ddice.{MOVED[old]}"


def test_modules_inside_a_moved_folder_moved_with_it() -> None:
    assert new_name("ddice.samplers.selection") == "ddice.diffusion.samplers.selection"
    assert new_name("ddice.data.spec") is None
    assert new_name("numpy.solvers") is None


def test_what_never_was_there_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("ddice.nonsense")


def test_importing_ddice_is_enough() -> None:
    program = "import ddice; from ddice.export import export; print(export.__module__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "ddice.policies.export", done.stderr
