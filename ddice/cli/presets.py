"""ddice presets: list, show and compare the named recipes."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import groupby
from typing import Any

from ddice.cli.command import add_command
from ddice.runs.folder import differences
from ddice.runs.presets import PRESETS, REASONS, describe, reason, unpublished


def register(commands: Any) -> None:
    """Add the command and what stands below it."""
    command = add_command(
        commands,
        "presets",
        _list,
        "List the named recipes, which --preset starts from; show one, or say how two differ "
        "and why.",
    )
    actions = command.add_subparsers(title="actions", metavar="ACTION", dest="action")
    show = add_command(actions, "show", _show, "Print a preset as JSON, which --config reads back.")
    show.add_argument("name", choices=PRESETS, metavar="NAME", help="a preset")
    diff = add_command(
        actions,
        "diff",
        _diff,
        "Print every field in which two presets differ, both values, and the reason.",
    )
    diff.add_argument(
        "name",
        nargs=2,
        choices=PRESETS,
        metavar="NAME",
        help="two presets, such as: official default",
    )


def _list(options: argparse.Namespace, rest: list[str]) -> None:
    width = max(map(len, PRESETS))
    for name in PRESETS:
        print(f"{name:{width}}  {describe(name)}")


def _show(options: argparse.Namespace, rest: list[str]) -> None:
    recipe = PRESETS[options.name]
    print(recipe.model_dump_json(indent=2))
    print(
        "\n".join(
            [f"{options.name}: {describe(options.name)}", *unpublished(options.name, recipe)]
        ),
        file=sys.stderr,
    )


def _diff(options: argparse.Namespace, rest: list[str]) -> None:
    one, two = (PRESETS[name].model_dump(mode="json") for name in options.name)
    order = list(REASONS)
    fields = sorted(differences(one, two), key=lambda field: order.index(reason(field)))
    print(f"{options.name[0]} -> {options.name[1]}")
    for name, group in groupby(fields, key=reason):
        for field in group:
            print(f"\n{field}: {_value(one, field)} -> {_value(two, field)}", end="")
        print(f"\n    {REASONS[name]}")


def _value(tree: Any, field: str) -> str:
    for key in field.split("."):
        if key not in tree:
            return "(no such field)"
        tree = tree[key]
    return json.dumps(tree)
