"""What mkdocs builds beside the pages of docs/: a page for every module that has public names."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ddice"
INTERNAL = ("ddice.cli", "ddice.core.moved", "ddice.policies.engines.kernels")
# pages and files outside of docs/, which the site does not have
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./[^)]*\)")


class Plain(griffe.Extension):
    """Docstrings are prose with formulas: Markdown would take a star for emphasis."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Escape what Markdown would read otherwise, outside of code."""
        if obj.docstring is not None:
            parts = re.split(r"(`[^`]*`)", obj.docstring.value)
            parts[::2] = [re.sub(r"([*<\[\]])", r"\\\1", part) for part in parts[::2]]
            obj.docstring.value = "".join(parts)


def modules() -> list[str]:
    """The modules with a class or a function that has a docstring, by name."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("ddice", *path.relative_to(PACKAGE).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        hidden = any(part.startswith("_") for part in parts[1:-1])
        if not hidden and not name.startswith(INTERNAL) and _public(path):
            found.append(name)
    return found


def _public(path: Path) -> bool:
    kinds = (ast.ClassDef, ast.FunctionDef)
    return any(
        isinstance(node, kinds) and not node.name.startswith("_") and ast.get_docstring(node)
        for node in ast.parse(path.read_text()).body
    )


def on_files(files: Files, config: Any) -> Files:
    """Add the reference."""
    names = modules()
    lines = ["# Reference", "", "Every module with public names, from its docstrings.", ""]
    lines += [f"- [{name}]({name}.md)" for name in names]
    files.append(File.generated(config, "reference/index.md", content="\n".join(lines)))
    for name in names:
        page = f"# {name}\n\n::: {name}\n"
        files.append(File.generated(config, f"reference/{name}.md", content=page))
    return files


def on_config(config: Any) -> Any:
    """Pages in the order of docs/README.md, then the reference."""
    table = (ROOT / "docs" / "README.md").read_text()
    pages = re.findall(r"^\| \[(\w+)\.md\]", table, flags=re.MULTILINE)
    config.nav = [
        {"Start": "README.md"},
        {"Pages": [{page.replace("_", " "): f"{page}.md"} for page in pages]},
        {"Reference": "reference/index.md"},
    ]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links that lead out of docs/ become text."""
    return OUTSIDE.sub(lambda link: "" if link[1] else link[2], markdown)
