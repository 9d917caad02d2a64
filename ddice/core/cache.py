"""Trained parts and datasets as read, found again by fingerprint: DDICE_CACHE, else
~/.cache/ddice.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ddice.core.locks import NO_LOCKS
from ddice.core.reading import read_json
from ddice.core.storage import explained, write_json

# Only what a digest can have named is an entry, so that `clear` deletes nothing else.
KEY = re.compile("[0-9a-f]{32}")
LOCK = ".lock"
POLL = 0.2  # seconds between two looks at the lock of an entry that another process makes


def cache_folder() -> Path:
    """The folder of the cache, read from the environment at each call.

    Raises OSError for a user without a home folder, such as an unknown id in a container, unless
    DDICE_CACHE names one.
    """
    named = os.environ.get("DDICE_CACHE")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "ddice"
    except RuntimeError as error:
        raise OSError(
            "this user has no home folder to keep the cache in: set DDICE_CACHE to a folder"
        ) from error


class Busy(Exception):
    """Another process makes this entry now."""


@dataclass(frozen=True)
class Entry:
    """One trained (or half trained) part, or one dataset: a folder with its state, what it is,
    and for parts a checkpoint and metrics.
    """

    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "state.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def description(self) -> Path:
        return self.folder / "about.json"

    @property
    def described(self) -> bool:
        """Whether there is a description, readable or not: it is written when there is something
        to describe.
        """
        # not Path.exists, which raises where the folder may not be entered
        return os.path.exists(self.description)

    @property
    def about(self) -> dict[str, Any]:
        """What `describe` wrote; empty where that is missing or damaged."""
        try:
            found = read_json(self.description)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def size(self) -> int:
        """Bytes on disk; of links their own, not those of what they lead to."""
        if self.folder.is_symlink():
            return self.folder.lstat().st_size
        files = (path for path in self.folder.rglob("*") if path.is_file() or path.is_symlink())
        return sum(path.lstat().st_size for path in files)

    @contextlib.contextmanager
    def held(self, on_busy: Callable[[], None]) -> Iterator[None]:
        """Make the entry alone. `on_busy` is called when another process makes it; unless it
        raises, that process is waited for. The operating system frees what a killed one held.

        On a file system without locks nobody waits: what two processes make is the same, and files
        are written whole.
        """
        with explained(self.folder / LOCK):  # which makes the folder
            lock = FileLock(self.folder / LOCK)
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                on_busy()
                lock.acquire(poll_interval=POLL)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        try:
            yield
        finally:
            lock.release()

    def describe(self, about: dict[str, Any]) -> None:
        """Write down what the entry is, for `ddice cache list`."""
        write_json(self.description, {"created": time.strftime("%Y-%m-%d %H:%M:%S"), **about})


def entry(stage: str, key: str) -> Entry:
    """The entry of a stage ("prior", "backend", ..., "data") with this fingerprint; its folder
    need not exist.
    """
    return Entry(cache_folder() / stage / key)


def entries() -> list[Entry]:
    """All entries, oldest first; those that a killed process left half written are among them."""
    found = [
        Entry(path)
        for path in cache_folder().glob("*/*")
        if KEY.fullmatch(path.name) and path.is_dir()
    ]
    # The time of a folder changes with every checkpoint in it, that of the description does not.
    return sorted(
        found, key=lambda one: (one.description if one.described else one.folder).stat().st_mtime
    )


def clear() -> int:
    """Delete all entries; the bytes that were freed. Of an entry that is a link the link goes, and
    what it leads to stays.
    """
    freed = 0
    for found in entries():
        freed += found.size
        if found.folder.is_symlink():
            found.folder.unlink()
        else:
            shutil.rmtree(found.folder)
    return freed
