"""Files as they come: what is read, and what is refused before it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ddice.core.reading import (
    MOST_NESTED,
    parse_json,
    plain_text,
    read_bytes,
    read_json,
    require_regular,
)


def nested(levels: int) -> str:
    """As many lists, each in the other."""
    return "[" * levels + "]" * levels


def test_a_regular_file_and_a_link_to_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2]}')
    (tmp_path / "link").symlink_to(path)
    for name in (path, tmp_path / "link", str(path)):
        assert read_bytes(name) == b'{"a": [1, 2]}'
        assert read_json(name) == {"a": [1, 2]}
        require_regular(name)


def test_the_limit_is_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, limit=5) == b"12345"
    with pytest.raises(ValueError, match="has 5 bytes, more than the 4 that such a file may have"):
        read_bytes(path, limit=4)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for read in (read_bytes, require_regular):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing")
        with pytest.raises(IsADirectoryError, match="is a folder"):
            read(tmp_path)
        for name in ("pipe", "zero"):
            with pytest.raises(ValueError, match=f"{name} is a device, a pipe or a socket"):
                read(tmp_path / name)


def test_the_depth_of_json_is_bounded() -> None:
    assert parse_json(nested(MOST_NESTED)) == json.loads(nested(MOST_NESTED))
    for text in (nested(MOST_NESTED + 1), nested(900), nested(100_000), '{"a":' * 100_000):
        with pytest.raises(ValueError, match="nested more than 64 levels deep"):
            parse_json(text)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"1" * 10_000, b"[" * 100_000])
def test_what_is_no_json_names_the_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_plain_text() -> None:
    assert plain_text("straße 3.5\nnext") == "straße 3.5\nnext"
    assert plain_text("\x1b[31mred\x07\r") == "\\x1b[31mred\\x07\\r"
    assert plain_text("a\u202eb\u200bc") == "a\\u202eb\\u200bc"
