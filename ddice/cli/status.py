"""ddice status."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddice.cli.command import add_command
from ddice.runs.status import describe, read_status


def register(commands: Any) -> None:
    """Add the command."""
    text = (
        "Say what the process in a run folder is doing, or how it ended: stage, step, time "
        "left, last metrics. Works from another terminal."
    )
    command = add_command(commands, "status", _status, text)
    command.add_argument("path", help="a run folder of ddice train or ddice compare")
    command.add_argument("--json", action="store_true", help="as JSON")


def _status(options: argparse.Namespace, rest: list[str]) -> None:
    status = read_status(Path(options.path))
    print(status.model_dump_json(indent=2) if options.json else describe(status))
