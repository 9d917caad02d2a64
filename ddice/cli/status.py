"""ddice status."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ddice.cli.command import add_command
from ddice.core.reading import plain_text
from ddice.runs.alarms.report import last_numbers, lines
from ddice.runs.metrics import read_metrics
from ddice.runs.status import describe, read_status


def register(commands: Any) -> None:
    """Add the command."""
    text = (
        "Say what the process in a run folder is doing, or how it ended: stage, step, time "
        "left, last metrics, last score of a learning curve, alarms. Works from another terminal."
    )
    command = add_command(commands, "status", _status, text)
    command.add_argument("path", help="a run folder of ddice train or ddice compare")
    command.add_argument("--json", action="store_true", help="as JSON")


def _status(options: argparse.Namespace, rest: list[str]) -> None:
    folder = Path(options.path)
    status, curves = read_status(folder), read_metrics(folder / "metrics")
    if options.json:
        content = {**status.model_dump(mode="json"), "alarms": last_numbers(curves)}
        print(json.dumps(content, indent=2))
    else:
        print("\n".join([describe(status), *map(plain_text, lines(curves))]))
