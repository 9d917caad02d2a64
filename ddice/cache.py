"""Trained parts, found again by fingerprint: DDICE_CACHE, else ~/.cache/ddice."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddice.storage import write_json


def cache_folder() -> Path:
    """The folder of the cache, read from the environment at each call."""
    return Path(os.environ.get("DDICE_CACHE") or Path.home() / ".cache" / "ddice")


@dataclass(frozen=True)
class Entry:
    """One trained (or half trained) part: a folder with its state, the checkpoint of a run that is not done, metrics, and what it is."""

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
    def about(self) -> dict[str, Any]:
        path = self.folder / "about.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def describe(self, about: dict[str, Any]) -> None:
        """Write down what the entry is, for `ddice cache list`."""
        write_json(self.folder / "about.json", {"created": time.strftime("%Y-%m-%d %H:%M:%S"), **about})


def entry(stage: str, key: str) -> Entry:
    """The entry of a stage ("prior", "backend", ...) with this fingerprint; its folder need not exist."""
    return Entry(cache_folder() / stage / key)


def entries() -> list[Entry]:
    """All entries, oldest first."""
    return [Entry(path.parent) for path in sorted(cache_folder().glob("*/*/about.json"), key=lambda path: path.stat().st_mtime)]


def clear() -> int:
    """Delete all entries; the bytes that were freed."""
    freed = 0
    for found in entries():
        freed += found.size
        shutil.rmtree(found.folder)
    return freed
