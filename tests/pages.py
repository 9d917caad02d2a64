"""Pages of the documentation as tests see them: their code, run in a folder of its own, their
commands, their links.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ddice.cli.command import read_fields, refuse
from ddice.cli.commands import _parser
from ddice.runs.comparison import Comparison
from ddice.runs.options import parse_flags
from ddice.runs.presets import PRESETS
from ddice.runs.recipe import DataSource, Recipe

ROOT = Path(__file__).parents[1]
FULL = "ddice/pointmaze-umaze-v0"  # the dataset of the README and the pages, a million rows
SHORT = {
    "20_000": "5",
    "episodes=100": "episodes=1",
}  # how pages write the length of what tests shorten
FENCE = r"^```{}\n(.*?)^```"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language, in order."""
    return re.findall(FENCE.format(language), text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Every line of the page's sh blocks that calls ddice."""
    lines = [
        line
        for language in ("sh", "bash")
        for block in blocks(text, language)
        for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("ddice ")]


def namespace_of(name: str, patch: pytest.MonkeyPatch, given: dict[str, Any]) -> dict[str, Any]:
    """The namespace of a module `name`, which exists while `patch` lasts: classes of a page need
    a module to be looked up in.
    """
    module = ModuleType(name)
    patch.setitem(sys.modules, name, module)
    module.__dict__.update(given)
    return module.__dict__


def run_block(
    code: str, where: str, namespace: dict[str, Any], changes: dict[str, str] | None = None
) -> None:
    """Execute one block with the lengths of `SHORT`; a block that begins with `# name.py` is
    that file too, in the current folder.
    """
    for old, new in {**SHORT, **(changes or {})}.items():
        code = code.replace(old, new)
    if file := re.match(r"# (\w+\.py)\n", code):
        Path(file[1]).write_text(code)
    exec(compile(code, where, "exec"), namespace)


def check_command(line: str) -> None:
    """Raise what the command line would say, if it does not know a command, an option, a field,
    or takes a value for wrong. Nothing is run.
    """
    options, rest = _parser().parse_known_args(shlex.split(line, comments=True)[1:])
    if options.takes_fields is DataSource:
        DataSource.model_validate(parse_flags(rest))
    elif options.takes_fields is Recipe:
        Recipe.model_validate(
            read_fields(
                options, rest, PRESETS[options.preset or "default"].model_dump(mode="json"), Recipe
            )
        )
    elif options.takes_fields is Comparison:
        Comparison.model_validate(
            read_fields(
                options,
                rest,
                {"recipe": PRESETS[options.preset or "default"].model_dump(mode="json")},
                Comparison,
            )
        )
    else:
        assert options.takes_fields is None
        refuse(options, rest)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(
        r"^#+ (.*)$",
        re.sub(FENCE.format(r"\w*"), "", text, flags=re.DOTALL | re.MULTILINE),
        flags=re.MULTILINE,
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page whose file, or whose anchor in it, does not exist."""
    broken = []
    for target in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    return broken
