"""Files as they come, perhaps from a stranger: regular, not too large, JSON of bounded depth."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

# What people write and what runs describe takes kilobytes; only metrics of long runs take more.
TEXT_LIMIT = 1 << 28
# Far more than any configuration has, and far below what Python's recursion stands.
MOST_NESTED = 64


def read_bytes(path: str | Path, limit: int = TEXT_LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises FileNotFoundError where there is none, ValueError for a device, a pipe, a socket and for
    a larger file, before anything is read; IsADirectoryError for a folder.
    """
    # A pipe without a writer would wait for one for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        # Of what was opened: by now the path may lead elsewhere.
        _check(path, os.fstat(descriptor), limit)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(descriptor)


def require_regular(path: str | Path) -> None:
    """Raise what `read_bytes` raises, for readers that open the file themselves."""
    _check(path, os.stat(path), None)


def _check(path: str | Path, found: os.stat_result, limit: int | None) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path} is a folder: expected a file")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is a device, a pipe or a socket: expected a regular file")
    if limit is not None and found.st_size > limit:
        raise ValueError(
            f"{path} has {found.st_size:,} bytes, more than the {limit:,} that such a file may "
            "have: it is damaged, or another kind of file"
        )


def parse_json(text: str | bytes) -> Any:
    """What a text in JSON says. Raises ValueError for what is not JSON, and for more than
    `MOST_NESTED` levels of it.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    require_shallow(content)
    return content


def require_shallow(content: Any) -> None:
    """Raise ValueError for a tree of more than `MOST_NESTED` levels, which recursion could not
    walk.
    """
    # Level by level, because recursion is what this guards.
    level = [content]
    for _ in range(MOST_NESTED):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        if not inner:
            return
        level = inner
    raise ValueError(_too_deep())


def _too_deep() -> str:
    return f"it is nested more than {MOST_NESTED} levels deep"


def read_json(path: str | Path, limit: int = TEXT_LIMIT) -> Any:
    """The JSON in a file; ValueError that names the file for what is not JSON, not a regular file
    or too large.
    """
    content = read_bytes(path, limit)
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): the file is truncated or foreign"
        ) from error


def plain_text(text: str) -> str:
    """The text without what a terminal would act on: control characters become their escapes."""
    return "".join(one if one.isprintable() or one == "\n" else _escape(one) for one in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
