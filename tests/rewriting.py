"""One change to a syntax tree: an expression or a statement, found by its form inside a function
that is found by its name.

A pattern is Python in which a single capital letter stands for any expression, the same one
wherever the letter comes again: `C + (C - P) / R`. Formatting, comments, the file that holds the
function and the names behind the letters do not matter.
"""

from __future__ import annotations

import ast
import copy
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ANY = re.compile("[A-Z]")
SHOWN_LINES = 40
Bound = dict[str, ast.AST]
# What says nothing about the form: positions are attributes and not fields, so only these.
UNREAD = ("ctx", "kind", "type_comment")


def pattern(text: str) -> ast.AST:
    """The tree of one expression, or of one statement that is none."""
    (statement,) = ast.parse(text).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def match(form: object, node: object, bound: Bound) -> bool:
    """Whether the node has the form; `bound` receives what each letter stands for."""
    if isinstance(form, ast.Name) and ANY.fullmatch(form.id) and isinstance(node, ast.expr):
        return match(bound.setdefault(form.id, node), node, {})
    if isinstance(form, list) and isinstance(node, list):
        return len(form) == len(node) and all(
            match(one, other, bound) for one, other in zip(form, node, strict=True)
        )
    if isinstance(form, ast.AST) and type(form) is type(node):
        return all(
            match(getattr(form, name), getattr(node, name), bound)
            for name in form._fields
            if name not in UNREAD
        )
    return type(form) is type(node) and form == node


class _Filled(ast.NodeTransformer):
    """A pattern with its letters replaced by what they stand for."""

    def __init__(self, bound: Mapping[str, ast.AST]):
        self.bound = bound

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return copy.deepcopy(self.bound.get(node.id, node))


class _Replaced(ast.NodeTransformer):
    """A tree with one of its nodes replaced."""

    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def scopes(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """All functions and classes of a tree with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}".lstrip(".")
            yield name, node
            yield from scopes(node, name)
        else:
            yield from scopes(node, prefix)


@cache
def _read(root: Path) -> dict[Path, list[tuple[str, ast.AST]]]:
    """The functions and classes of every file below `root`."""
    files = sorted(root.rglob("*.py"))
    return {path: list(scopes(ast.parse(path.read_text()))) for path in files}


@dataclass(frozen=True)
class Rewriting:
    """Within `where`, `find` becomes `become`.

    where: the last names of a function's or class's qualified name, such as "Piecewise.curvature"
    or "integrate"; of all that bear it, one has the form `find`, once.
    """

    where: str
    find: str
    become: str

    def text(self, root: Path) -> tuple[Path, str]:
        """The one file below `root` that changes, and its new text. Raises ValueError, with what is
        there, unless the form stands exactly once in what bears the name.
        """
        files = _read(root)
        found = [(path, node) for path in files for node, _ in self._matches(files[path])]
        if len(found) != 1:
            places = [f"{path.name}:{_line(node)}" for path, node in found]
            raise ValueError(self._missed(root, places))
        path = found[0][0]
        tree = ast.parse(path.read_text())
        ((old, bound),) = self._matches(list(scopes(tree)))
        new = _Filled(bound).visit(pattern(self.become))
        return path, ast.unparse(ast.fix_missing_locations(_Replaced(old, new).visit(tree)))

    def _bears(self, name: str) -> bool:
        return f".{name}".endswith(f".{self.where}")

    def _matches(self, named: list[tuple[str, ast.AST]]) -> list[tuple[ast.AST, Bound]]:
        form = pattern(self.find)
        matches: dict[ast.AST, Bound] = {}
        for name, scope in named:
            for node in ast.walk(scope) if self._bears(name) else ():
                bound: Bound = {}
                if match(form, node, bound):
                    matches[node] = bound
        return list(matches.items())

    def _missed(self, root: Path, places: list[str]) -> str:
        """What was looked for, and what is there."""
        looked = f"expected `{self.find}` once in {self.where!r}, found it {len(places)} times"
        if places:
            return f"{looked}, in {', '.join(places)}: write more of its form, or of its name"
        files = _read(root)
        there = [
            f"{path.relative_to(root.parent)}:{_line(scope)}\n{_start(scope)}"
            for path, named in files.items()
            for name, scope in named
            if self._bears(name)
        ]
        if there:
            return "\n".join((f"{looked}: write it for what is there:", *there))
        names = {name for named in files.values() for name, _ in named}
        near = difflib.get_close_matches(self.where, sorted(names), cutoff=0.4)
        return f"{looked}: nothing bears that name; near to it: {', '.join(near) or 'none'}"


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def _start(node: ast.AST) -> str:
    return "\n".join(ast.unparse(node).splitlines()[:SHOWN_LINES])
