"""ddice results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddice.cli.command import add_command
from ddice.runs.comparison import render_table
from ddice.runs.comparison.columns import write_csv, write_parquet
from ddice.runs.comparison.foreign import foreign_results
from ddice.runs.comparison.reading import read_results


def register(commands: Any) -> None:
    """Add the command."""
    text = (
        "Print the table of a comparison from its folder, or write all that is known of every "
        "policy into one file. Works while the comparison runs."
    )
    command = add_command(commands, "results", _results, text)
    command.add_argument("path", help="a run folder of ddice compare")
    command.add_argument("--csv", metavar="FILE", help="write a CSV, a row per policy")
    command.add_argument("--parquet", metavar="FILE", help="write a Parquet file")
    text = "a CSV of other people's methods, with columns of ours, to stand beside ours"
    command.add_argument("--with", metavar="FILE", action="append", default=[], help=text)


def _results(options: argparse.Namespace, rest: list[str]) -> None:
    ours = read_results(Path(options.path))
    results = [*ours]
    for other in vars(options)["with"]:
        results += foreign_results(Path(other), ours)
    if options.csv is not None:
        write_csv(results, Path(options.csv))
    if options.parquet is not None:
        write_parquet(results, Path(options.parquet))
    if options.csv is None and options.parquet is None:
        print(render_table(results))
