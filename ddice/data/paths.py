"""Paths of leaves: the keys of nested observations as one string, "extra/clock"; "" is a plain
array.

A "/" within a key is written "~1" and a "~" "~0", as in JSON pointers (RFC 6901), so that two
leaves never share a path.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def path_below(key: Any, inner: str, name: str) -> str:
    """The path of what lies at `inner` below `key`. Raises TypeError for keys that are no text."""
    if not isinstance(key, str):
        raise TypeError(
            f"expected text as the keys of {name}, got {key!r} ({type(key).__name__}): name it, "
            "here and in the environment, because a policy finds its observations by these keys"
        )
    escaped = key.replace("~", "~0").replace("/", "~1")
    return f"{escaped}/{inner}" if inner else escaped


def keys_of(path: str) -> tuple[str, ...]:
    """The keys that lead to the leaf at a path."""
    if not path:
        return ()
    return tuple(key.replace("~1", "/").replace("~0", "~") for key in path.split("/"))


def leaf_at(item: Any, path: str) -> Any:
    """The leaf of nested mappings, or of dict spaces, at a path."""
    for key in keys_of(path):
        item = item[key]
    return item


def nested(leaves: Iterable[tuple[str, Any]]) -> Any:
    """(path, leaf) pairs as the nested dicts that they came from; one leaf at "" as itself."""
    whole: dict[str, Any] = {}
    for path, leaf in leaves:
        if not path:
            return leaf
        *outer, last = keys_of(path)
        node = whole
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = leaf
    return whole
