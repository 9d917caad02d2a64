"""What the tabulator key offers, as bash itself answers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest

bash = shutil.which("bash")
pytestmark = pytest.mark.skipif(bash is None, reason="needs bash")
ASK = """
eval "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ddice; printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_words_that_may_follow(run: Callable[..., tuple[int, str, str]]) -> None:
    status, script, _ = run("completion", "bash")
    assert status == 0

    def offered(*words: str) -> list[str]:
        command = [str(bash), "-c", ASK, "bash", script, "ddice", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert offered("tr") == ["train"]
    assert offered("data", "de") == ["describe"]
    assert offered("cache", "") == ["list", "clear", "--help"]
    assert offered("train", "--backend.temp") == ["--backend.temperature"]
    assert offered("train", "--dry") == ["--dry-run"]
    assert offered("train", "--run", "runs/a", "--dry") == ["--dry-run"]
    assert "onnx" in offered("evaluate", "runs/a", "--engine", "")
    assert offered("evaluate", "runs/a", "--engine", "ref") == ["reference"]
    assert offered("train", "--preset", "loco") == ["locomotion"]
    assert offered("presets", "show", "loco") == ["locomotion"]
    assert offered("data", "check", "--data") == []  # fields of the source stand by themselves
    assert offered("data", "check", "--action") == ["--action_bounds"]
    assert offered("nonsense", "x") == []
