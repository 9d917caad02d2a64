"""The flat cache: what a reader made of files, memory-mapped the next time, and read again when
the files or the entry have changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddice.core.cache import Entry, entry
from ddice.core.storage import load_tensors, save_tensors
from ddice.data.source import Source

KIND = "dataset"
STAGE = "data"
READERS = 2
"""To be raised when a reader makes something else of the same files."""

SETTLED = 2_000_000_000
"""Nanoseconds after which a time stamp is believed: within one tick of its file system's clock
(2 s at worst) a file can change twice.
"""

CHUNK = 1 << 20


def cached(
    identity: Mapping[str, Any], files: Sequence[Path], read: Callable[[], Source]
) -> Source:
    """What `read` makes of `files`: from the cache where it holds just that, else by reading, which
    the cache then keeps.

    `identity` (JSON) is what decides the outcome besides the content of the files. Unchanged sizes
    and time stamps mean unchanged files; where they changed, or are too fresh to be believed, a
    hash of the content decides. An entry is believed when the checksum of its bytes is right.
    """
    try:
        found = entry(STAGE, _key(identity))
    except OSError as error:
        _say(f"{error}; until then datasets are read anew each time")
        return read()
    checked, stamp = time.time_ns(), _stamp(files)
    about = found.about
    believed = about.get("stamp") == stamp and _settled(stamp, about.get("checked"))
    content = str(about.get("content")) if believed else _content(files)
    if found.described and about.get("content", content) == content:
        try:
            source = _load(found, about, content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            _say(
                f"the cache entry {found.folder} is damaged ({error}): {identity['source']} is "
                "read again"
            )
        else:
            if not believed:
                with suppress(OSError):
                    found.describe({**about, "stamp": stamp, "checked": checked})
            return source
    source = read()
    # Whatever changed while it was read must not be kept under the old content.
    if _stamp(files) == stamp and (_settled(stamp, checked) or _content(files) == content):
        try:
            _store(
                found,
                source,
                content,
                {
                    "data": identity["source"],
                    "rows": len(source),
                    "stamp": stamp,
                    "checked": checked,
                },
            )
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else error
            _say(
                f"the cache {found.folder.parent} cannot be written ({why}): datasets are read "
                "anew each time"
            )
    return source


def _say(message: str) -> None:
    warnings.warn(
        message, UserWarning, stacklevel=2
    )  # the same place for all, so that Python shows the same message once


def _key(identity: Mapping[str, Any]) -> str:
    return hashlib.blake2b(
        json.dumps({**identity, "readers": READERS}, sort_keys=True).encode(), digest_size=16
    ).hexdigest()


def _stamp(files: Sequence[Path]) -> list[list[Any]]:
    """What a change of content changes too; ctime because, unlike mtime, it cannot be set."""
    found = [(path, path.stat()) for path in files]
    return [
        [str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        for path, status in found
    ]


def _settled(stamp: list[list[Any]], checked: Any) -> bool:
    return isinstance(checked, int) and all(
        max(mtime, ctime) + SETTLED < checked for _, _, mtime, ctime in stamp
    )


def _content(files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\0".encode())
        for chunk in _chunks(path):
            digest.update(chunk)
    return digest.hexdigest()


def _checksum(path: Path) -> int:
    """CRC-32 of a file: finds every flipped byte and, short of one chance in four billion, all
    other damage.
    """
    value = 0
    for chunk in _chunks(path):
        value = zlib.crc32(chunk, value)
    return value


def _chunks(path: Path) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            yield buffer[:size]


def _store(found: Entry, source: Source, content: str, about: Mapping[str, Any]) -> None:
    tensors, facts = _pack(source)
    save_tensors(found.state, KIND, tensors, {"content": content, "facts": facts})
    found.describe({"stage": STAGE, **about, "content": content, "crc32": _checksum(found.state)})


def _load(found: Entry, about: Mapping[str, Any], content: str) -> Source:
    if _checksum(found.state) != about["crc32"]:
        raise ValueError("its bytes are not those that were written")
    tensors, meta = load_tensors(found.state, KIND)  # memory-mapped, copied on write
    if meta["content"] != content:  # another process replaced it after the checksum
        raise ValueError("it belongs to another version of the files")
    return _unpack(tensors, meta["facts"])


def _pack(source: Source) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Arrays as tensors, "field" or "field/leaf", and everything else as JSON."""
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {"order": list(source.leaves)}
    for field in dataclasses.fields(source):
        value = getattr(source, field.name)
        if field.name == "bounds":
            facts["bounds"] = None if value is None else [bound.tolist() for bound in value]
        elif field.name == "next_leaves" and value is source.leaves:
            facts["next_leaves"] = None
        elif isinstance(value, dict):
            arrays.update({f"{field.name}/{path}": leaf for path, leaf in value.items()})
        elif isinstance(value, np.ndarray):
            arrays[field.name] = value
        else:
            facts[field.name] = value
    tensors = {
        name: torch.from_numpy(_plain(array, exact=name == "actions"))
        for name, array in arrays.items()
    }
    return tensors, facts


def _plain(array: np.ndarray, *, exact: bool) -> np.ndarray:
    """In a dtype that tensors have; floats as float32, which is what all of them become after
    reading, but for actions (`exact`), which are mapped to [-1, 1] before.
    """
    dtype = np.dtype(np.float32 if array.dtype.kind == "f" else np.int64)
    if array.dtype in (np.bool_, np.uint8) or (exact and array.dtype == np.float64):
        dtype = array.dtype
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype)


def _unpack(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Source:
    values = {key: value for key, value in facts.items() if key != "order"}
    for name, tensor in tensors.items():
        field, is_leaf, _ = name.partition("/")
        values[field] = {} if is_leaf else tensor.numpy()
    for field in ("leaves", "next_leaves", "initial_leaves"):
        if values[field] is not None:
            values[field] = {path: tensors[f"{field}/{path}"].numpy() for path in facts["order"]}
    if values["next_leaves"] is None:
        values["next_leaves"] = values["leaves"]
    if values["bounds"] is not None:
        values["bounds"] = tuple(np.asarray(bound, np.float64) for bound in values["bounds"])
    values["reference"] = None if values["reference"] is None else tuple(values["reference"])
    return Source(**values)
