"""What the project says of itself in several files is the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text()


def found(pattern: str, text: str) -> list[str]:
    return re.findall(pattern, text, flags=re.MULTILINE)


def test_the_workflow_runs_the_gate_on_both_ends_of_what_is_claimed() -> None:
    pairs = re.findall(r'\{ python: "([\d.]+)", torch: "([\d.]+)" \}', WORKFLOW)
    (lowest,) = found(r'^requires-python = ">=([\d.]+)"', PROJECT)
    pythons = found(r'^  "Programming Language :: Python :: (3\.\d+)",', PROJECT)
    ((low, below),) = re.findall(r'"torch>=([\d.]+),<([\d.]+)"', PROJECT)
    (newest,) = found(r"^CPU_TORCH='torch==([\d.]+)\+cpu'", (ROOT / ".ci/install").read_text())
    assert pythons[0] == lowest
    assert pairs == [(lowest, f"{low}.0"), (pythons[-1], newest)]
    assert int(newest.split(".")[1]) + 1 == int(below.split(".")[1])
    assert found(r"^      - run: (.*)$", WORKFLOW)[-1] == ".ci/run"


def test_the_hooks_are_the_tools_of_the_gate() -> None:
    hooks = found(r"entry: \.venv/bin/(\w+)", (ROOT / ".pre-commit-config.yaml").read_text())
    gate = found(r"^\t\$\(VENV\)/bin/(ruff|mypy)", (ROOT / "Makefile").read_text())
    assert hooks == gate == ["ruff", "ruff", "mypy"]


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert found(r"^version: (.*)$", citation) == found(r'^version = "(.*)"', PROJECT)
    assert found(r"^license: (.*)$", citation) == found(r'^license = "(.*)"', PROJECT)


def test_the_changelog_dates_this_version_below_what_is_to_come() -> None:
    headings = found(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text())
    (version,) = found(r'^version = "(.*)"', PROJECT)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", headings[1])
