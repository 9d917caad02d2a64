"""ddice cache."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ddice import cache
from ddice.cli.command import add_command


def register(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "cache", _cache, "List or delete trained parts (DDICE_CACHE, else ~/.cache/ddice).")
    command.add_argument("action", choices=["list", "clear"])


def _cache(options: argparse.Namespace, rest: list[str]) -> None:
    if options.action == "clear":
        print(f"freed {cache.clear() / 2**20:.1f} MiB in {cache.cache_folder()}")
        return
    for found in cache.entries():
        about = found.about
        done = "trained" if found.state.exists() else "stopped"
        parts = "+".join(about["parts"])
        print(
            f"{about['created']}  {about['stage']:10} {parts:32} {about['steps']:>9,} steps  seed {about['seed']}  {done:8} "
            f"{found.size / 2**20:6.1f} MiB  {json.dumps(about['data'])}  {found.folder.name[:8]}"
        )
    print(cache.cache_folder())
