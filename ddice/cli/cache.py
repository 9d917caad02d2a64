"""ddice cache."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ddice.cli.command import add_command
from ddice.core import cache
from ddice.core.reading import plain_text


def register(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "cache",
        _cache,
        "List or delete trained parts and datasets as read (DDICE_CACHE, else ~/.cache/ddice).",
    )
    command.add_argument("action", choices=["list", "clear"])


def _cache(options: argparse.Namespace, rest: list[str]) -> None:
    if options.action == "clear":
        print(f"freed {cache.clear() / 2**20:.1f} MiB in {cache.cache_folder()}")
        return
    for found in cache.entries():
        print(plain_text(_line(found)))
    print(cache.cache_folder())


def _line(found: cache.Entry) -> str:
    about, size, key = found.about, f"{found.size / 2**20:6.1f} MiB", found.folder.name[:8]
    try:
        if about["stage"] == "data":
            return (
                f"{about['created']}  {'data':10} {'':32} {about['rows']:>9,} rows   "
                f"{'':17}{size}  {json.dumps(about['data'])}  {key}"
            )
        done = "trained" if found.state.exists() else "stopped"
        return (
            f"{about['created']}  {about['stage']:10} {'+'.join(about['parts']):32} "
            f"{about['steps']:>9,} steps  seed {about['seed']}  {done:8} {size}  "
            f"{json.dumps(about['data'])}  {key}"
        )
    except (KeyError, TypeError, ValueError):
        return (
            f"{'damaged':19}  {found.folder.parent.name:10} {size}  {key}: about.json cannot "
            "be read; ddice cache clear deletes it"
        )
