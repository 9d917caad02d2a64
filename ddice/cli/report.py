"""ddice report."""

from __future__ import annotations

import argparse
from typing import Any

from ddice.cli.command import add_command, add_trust
from ddice.runs.report import write_report

TEXT = """\
Write a comparison as one page, report.html in its run folder, that opens from the disk: tables
over all tasks and for each, intervals, profiles, learning curves, return against latency, ratios
and alarms, protocol and provenance, and beside each row the command that repeats it.

The figures stand in report/ as PNG files too, with the configuration of each policy alone. The
same results give the same bytes. Needs pip install 'ddice[report]'.
"""


def register(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "report", _report, TEXT)
    command.add_argument("path", help="a run folder of ddice compare")
    text = "a CSV of other people's methods, as for ddice results, to stand beside ours"
    command.add_argument("--with", metavar="FILE", action="append", default=[], help=text)
    add_trust(command)


def _report(options: argparse.Namespace, rest: list[str]) -> None:
    others = vars(options)["with"]
    print(write_report(options.path, others=others, trust=options.trust))
