"""ddice data: make or describe datasets."""

from __future__ import annotations

import argparse
from typing import Any, Literal, get_args

from ddice.cli import collect
from ddice.cli.command import add_command
from ddice.options import parse_flags
from ddice.recipe import DataSource

MazeSize = Literal["umaze", "medium", "large"]


def register(commands: Any) -> None:
    """Add the command and what stands below it."""
    group = commands.add_parser("data", help="Make or describe datasets.", description="Make or describe datasets.", allow_abbrev=False)
    actions = group.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)

    make = add_command(actions, "make", _make, "Make a dataset without a network.")
    make.add_argument("name", nargs="?", help="pointmaze-umaze, pointmaze-medium or pointmaze-large")
    make.add_argument("--steps", type=int, default=1_000_000, help="transitions")
    make.add_argument("--generation-seed", type=int, default=123, help="seed of the generation")
    make.add_argument("--no-progress", action="store_true", help="no progress bars")

    collect.register(actions)

    describe = add_command(actions, "describe", _describe, "Print what a source holds.", DataSource)
    describe.add_argument("name", nargs="?", help="a source")


def _make(options: argparse.Namespace, rest: list[str]) -> None:
    from ddice.collection import make_pointmaze

    sizes: dict[str, MazeSize] = {f"pointmaze-{size}": size for size in get_args(MazeSize)}
    if options.name not in sizes:
        raise ValueError(f"expected one of {', '.join(sizes)}, got {options.name!r}")
    made = make_pointmaze(sizes[options.name], steps=options.steps, seed=options.generation_seed, progress=not options.no_progress)
    print(f"{made} is ready: ddice.load_dataset({made!r}), or ddice train --data.source {made}")


def _describe(options: argparse.Namespace, rest: list[str]) -> None:
    fields = {**({} if options.name is None else {"source": options.name}), **parse_flags(rest)}
    print(DataSource.model_validate(fields).load().describe())
