"""ddice presets: list, show and compare the named recipes."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from itertools import groupby
from typing import Any

from ddice.cli.command import add_command
from ddice.runs.folder import differences
from ddice.runs.presets import DOMAINS, PRESETS, REASONS, describe, unpublished, why
from ddice.runs.presets.choices import value_at
from ddice.runs.recipe import Recipe

WIDTH, INDENT = 100, " " * 4


def register(commands: Any) -> None:
    """Add the command and what stands below it."""
    command = add_command(
        commands,
        "presets",
        _list,
        "List the named recipes, which --preset starts from; ddice presets NAME says what one "
        "sets and why.",
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
    for name in PRESETS:
        text = f"Print what the preset {name} sets otherwise than the default, and why."
        # Without a help of their own they are not listed: `ddice presets` does that.
        actions.add_parser(name, description=text, allow_abbrev=False).set_defaults(
            run_command=_explain, takes_fields=None
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


def _explain(options: argparse.Namespace, rest: list[str]) -> None:
    name = options.action
    print(f"{name}: {describe(name)}\n")
    if name in DOMAINS:
        default = Recipe().model_dump(mode="json")
        for choice in DOMAINS[name]:
            instead = _words(value_at(default, choice.field), full=False)
            print(f"{choice.field}: {_words(choice.value)} (default: {instead})")
            print(f"{_text(choice.reason)}\n{_text(f'Source: {choice.source}.')}\n")
        print("All other fields are those of the default.")
    elif name != "default":
        _print_differences("default", name)
        print()
    print(
        f"ddice train --preset {name} trains with it, ddice presets show {name} prints it as JSON."
    )


def _diff(options: argparse.Namespace, rest: list[str]) -> None:
    _print_differences(*options.name)


def _print_differences(*names: str) -> None:
    one, two = (PRESETS[name].model_dump(mode="json") for name in names)
    reasons = {field: why(field, *names) for field in differences(one, two)}
    order = list(REASONS.values())
    own = [reason for reason in reasons.values() if reason not in order]
    fields = sorted(reasons, key=lambda field: [*own, *order].index(reasons[field]))
    print(" -> ".join(names))
    for reason, group in groupby(fields, key=reasons.__getitem__):
        for field in group:
            print(f"\n{field}: {_value(one, field)} -> {_value(two, field)}", end="")
        print(f"\n    {reason}")


def _text(words: str) -> str:
    return textwrap.fill(words, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)


def _words(value: Any, full: bool = True) -> str:
    """A value as it is read aloud: of what has a kind, the kind, and if `full` its fields."""
    if not isinstance(value, dict):
        return json.dumps(value)
    kind = [value["kind"]] if "kind" in value else []
    fields = [f"{name} {_words(below)}" for name, below in value.items() if name != "kind"]
    return ", ".join([*kind, *(fields if full or not kind else [])])


def _value(tree: Any, field: str) -> str:
    try:
        return json.dumps(value_at(tree, field))
    except KeyError:
        return "(no such field)"
