"""What docs/ says is true: its Python runs, its commands are known, its links lead somewhere, and its examples reach answers known otherwise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pages import FULL, ROOT, blocks, broken_links, check_command, commands, namespace_of, run_block

from ddice.cli import main

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
WITH_CODE = [page for page in DOCS if blocks(page.read_text(), "python")]


def run_page(name: str, maze: str, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the Python of docs/`name`.md from top to bottom in `folder`; what it leaves behind."""
    patch.chdir(folder)
    patch.syspath_prepend(folder)
    patch.setenv("DDICE_CACHE", str(folder / "cache"))
    namespace = namespace_of(f"page_{name}", patch, {})
    for number, code in enumerate(blocks((ROOT / "docs" / f"{name}.md").read_text(), "python")):
        run_block(code, f"docs/{name}.md, block {number}", namespace, {FULL: maze})
    return namespace


@pytest.mark.filterwarnings("ignore:.*rows dropped", "ignore:.*no `?timeouts", "ignore:the guidance network is constant")
@pytest.mark.parametrize("name", [page.stem for page in WITH_CODE])
def test_python_runs(name: str, small_maze: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages assert what they claim, where that is one line."""
    run_page(name, small_maze, tmp_path, monkeypatch)


def test_the_mistakes_of_check_are_found(small_maze: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_page("check", small_maze, tmp_path, monkeypatch)
    capsys.readouterr()
    assert main(["data", "check", "walk.npz", "--action-bounds", "[-1, 1]"]) == 0
    assert capsys.readouterr().out == blocks((ROOT / "docs/check.md").read_text(), "text")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# A heading, it's here\n\n```sh\n# no heading\n```\n")
    page.write_text("[a](other.md) ![b](gone.png) [c](other.md#a-heading-its-here) [d](other.md#no-heading) [e](https://example.org/x) [f](#top)\n")
    assert broken_links(page) == ["gone.png", "other.md#no-heading", "#top"]


@pytest.mark.parametrize("command", sorted({line for page in PAGES for line in commands(page.read_text())}))
def test_commands_are_known(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # for --config benchmarks/...
    check_command(command)


@pytest.mark.parametrize(
    "command", ["ddice trian", "ddice train --backend.temprature 1", "ddice evaluate runs/a --epsiodes 1", "ddice data check a.npz --gaol fixed"]
)
def test_unknown_commands_are_seen(command: str) -> None:
    with pytest.raises((ValueError, SystemExit)):
        check_command(command)


def test_make_targets_and_scripts_exist() -> None:
    """`make target` and `python path.py` of the pages' sh blocks."""
    targets = set(re.findall(r"^(\w+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    lines = [line for page in PAGES for block in blocks(page.read_text(), "sh") for line in block.splitlines()]
    assert {line.split()[1] for line in lines if line.startswith("make ")} <= targets
    assert [line for line in lines if line.startswith("python ") and not (ROOT / line.split()[1]).exists()] == []
