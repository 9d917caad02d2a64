"""ddice data: make, collect, describe or check datasets."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

from ddice.cli import collect
from ddice.cli.command import add_command, add_trust_env
from ddice.data import quality
from ddice.data.description import Description
from ddice.runs.options import parse_flags
from ddice.runs.presets import fitting_preset
from ddice.runs.recipe import DataSource

MazeSize = Literal["umaze", "medium", "large"]


def register(commands: Any) -> None:
    """Add the command and what stands below it."""
    text = "Make, collect, describe or check datasets."
    group = commands.add_parser("data", help=text, description=text, allow_abbrev=False)
    actions = group.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)

    make = add_command(actions, "make", _make, "Make a dataset without a network.")
    make.add_argument(
        "name", nargs="?", help="pointmaze-umaze, pointmaze-medium or pointmaze-large"
    )
    make.add_argument("--steps", type=int, default=1_000_000, help="transitions")
    make.add_argument("--generation-seed", type=int, default=123, help="seed of the generation")
    make.add_argument("--no-progress", action="store_true", help="no progress bars")

    collect.register(actions)

    describe = add_command(actions, "describe", _describe, "Print what a source holds.", DataSource)
    describe.add_argument("name", nargs="?", help="a source")
    describe.add_argument(
        "--plot", metavar="FILE.png", help="draw returns, lengths and the marginals of the actions"
    )

    add_trust_env(describe)

    text = (
        "Look for what may be wrong with a source, and say what to do about it. The exit "
        "status is 1 if anything is an error."
    )
    check = add_command(actions, "check", _check, text, DataSource)
    check.add_argument("name", nargs="?", help="a source")
    check.add_argument("--json", action="store_true", help="findings as a JSON list")
    add_trust_env(check)


def _make(options: argparse.Namespace, rest: list[str]) -> None:
    from ddice.collection import make_pointmaze

    sizes: dict[str, MazeSize] = {f"pointmaze-{size}": size for size in get_args(MazeSize)}
    if options.name not in sizes:
        raise ValueError(f"expected one of {', '.join(sizes)}, got {options.name!r}")
    made = make_pointmaze(
        sizes[options.name],
        steps=options.steps,
        seed=options.generation_seed,
        progress=not options.no_progress,
    )
    print(f"{made} is ready: ddice.load_dataset({made!r}), or ddice train --data.source {made}")


def _source(options: argparse.Namespace, rest: list[str]) -> DataSource:
    return DataSource.model_validate(
        {**({} if options.name is None else {"source": options.name}), **parse_flags(rest)}
    )


def _describe(options: argparse.Namespace, rest: list[str]) -> None:
    data = _source(options, rest).load(options.trust_env)
    print(data.describe())
    if options.plot is not None:
        from ddice.pictures import dataset_overview

        dataset_overview(data).savefig(options.plot)
        print(f"{'plot':<15}{options.plot}")


def _check(options: argparse.Namespace, rest: list[str]) -> int:
    source = _source(options, rest)
    about = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what loading warns of are findings here
            data = source.load(options.trust_env)
        found: Sequence[quality.Finding] = quality.check(data, trust_env=options.trust_env)
        description = data.describe()
        about = [description.ahead, preset(description)]
    except (ValueError, TypeError) as error:
        found = [quality.unreadable(error)]
    if options.json:
        print(json.dumps([finding.model_dump() for finding in found], indent=2))
    else:
        print("\n\n".join(text for text in [report(found), *about] if text))
    return int(any(finding.severity == "error" for finding in found))


def preset(description: Description) -> str:
    """The preset that fits the data, and why, for people."""
    name, reasons = fitting_preset(description)
    lines = [f"{'preset':<15}{name}: {reasons[0]}", *(f"{'':15}{reason}" for reason in reasons[1:])]
    return "\n".join([*lines, f"{'':15}-> ddice train --preset {name}; why: ddice presets {name}"])


def report(found: Sequence[quality.Finding]) -> str:
    """Findings for people: each with its advice, the counts last."""
    lines = [
        f"{finding.severity:<9}{finding.name}: {finding.message}\n{'':9}-> {finding.advice}"
        for finding in found
    ]
    counts = [
        (severity, sum(finding.severity == severity for finding in found))
        for severity in quality.SEVERITIES
    ]
    return "\n".join(
        [
            *lines,
            ", ".join(
                f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts
            ),
        ]
    )
