"""What every command of the command line shares: how it is added, and how it reads its options."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ddice.core.config import import_function, merge, unknown_name
from ddice.parts.loop import Listener, Terminated, TrainingDiverged
from ddice.parts.watcher import WatcherFailed
from ddice.runs.comparison import Comparison
from ddice.runs.options import Tree, describe_fields, parse_flags, read_config
from ddice.runs.recipe import Recipe
from ddice.runs.tensorboard import TensorBoard
from ddice.runs.training import CHECKPOINT_EVERY

Run = Callable[[argparse.Namespace, list[str]], "int | None"]  # the exit status, None for 0


def add_command(
    commands: Any,
    name: str,
    run: Run,
    text: str,
    fields: type[BaseModel] | None = None,
    first: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """A new command among `commands`; with `fields`, every field of that model is an option too.
    Its help names them all, or only those in `first`, and --help-all all of them.
    """
    raw = argparse.RawDescriptionHelpFormatter
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text.partition("\n\n")[0],
        description=text,
        formatter_class=raw,
        allow_abbrev=False,
    )
    command.set_defaults(run_command=run, takes_fields=fields)
    if fields is not None and first:
        command.epilog = _first_fields(fields, first)
        command.add_argument(
            "--help-all", action=_HelpAll, const=fields, help="the same with every field"
        )
    elif fields is not None:
        command.epilog = _all_fields(fields)
    return command


class _HelpAll(argparse.Action):
    """Print the help with every field of a model (`const`) as an option, and exit."""

    def __init__(self, option_strings: list[str], dest: str, const: Any, help: str):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, const=const, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.epilog = _all_fields(self.const)
        parser.print_help()
        parser.exit()


def _all_fields(fields: type[BaseModel]) -> str:
    title = f"every field of the {fields.__name__.lower()} is an option:"
    return "\n".join([title, *describe_fields(fields)])


def _first_fields(fields: type[BaseModel], first: Sequence[str]) -> str:
    lines = describe_fields(fields)
    # The first of a name: other kinds of a choice may have a field of the same name.
    found = {line.split()[0]: line.strip() for line in reversed(lines)}
    options = sum(name.startswith("--") and not name.endswith(".*") for name in found)
    title = (
        f"every field of the {fields.__name__.lower()} is an option, {options} in all; --help-all "
        "lists them. The first to know:"
    )
    return "\n".join([title, *(found[f"--{name}"] for name in first)])


def names_modules(options: argparse.Namespace) -> bool:
    """Whether the user names modules, which may be files of the working directory: by --trust and
    --trust-env, or as "module:name".
    """
    given = vars(options)
    trusted = [*given.get("trust", ()), *given.get("trust_env", ())]
    named = [given.get("hook"), given.get("q"), given.get("env"), *(given.get("policy") or ())]
    return bool(trusted) or any(":" in name for name in named if name is not None)


def own_options(options: argparse.Namespace) -> list[str]:
    """The options of a command that are no fields."""
    return [
        name.replace("_", "-")
        for name in vars(options)
        if name not in ("run_command", "takes_fields", "path", "action", "name")
    ]


def refuse(options: argparse.Namespace, rest: list[str]) -> None:
    """Raise ValueError when there are arguments that a command does not know."""
    if rest:
        name = rest[0].partition("=")[0].removeprefix("--")
        raise ValueError(
            unknown_name(name, own_options(options), "option")
            if rest[0].startswith("--")
            else f"unexpected argument {rest[0]!r}"
        )


def read_fields(
    options: argparse.Namespace, rest: list[str], base: Tree, model: type[BaseModel]
) -> Tree:
    """`base`, overridden by --config and then by the dotted flags; ValueError for a name that is
    no field.
    """
    config = {} if options.config is None else read_config(options.config)
    flags = parse_flags(rest)
    for name in flags:
        if name not in model.model_fields:
            if model is Comparison and name in Recipe.model_fields:
                raise ValueError(
                    f"unknown option {name!r}: it is a field of the recipe that is compared, "
                    f"--recipe.{name}"
                )
            raise ValueError(
                unknown_name(name, [*model.model_fields, *own_options(options)], "option")
            )
    return dict(merge(merge(base, config), flags))


def add_trust(command: argparse.ArgumentParser) -> None:
    """--trust, of commands that read what may be made of somebody's own classes."""
    text = "import classes of this module, which the recipe or policy is made of"
    command.add_argument("--trust", metavar="MODULE", action="append", default=[], help=text)


def add_trust_env(command: argparse.ArgumentParser) -> None:
    """--trust-env, of commands that make the environment which data or a policy record."""
    text = "let this module make the recorded environment, which Gymnasium's registry lacks"
    command.add_argument("--trust-env", metavar="MODULE", action="append", default=[], help=text)


def add_training_options(command: argparse.ArgumentParser) -> None:
    """What every command that trains has."""
    command.add_argument(
        "--checkpoint-every",
        metavar="N",
        type=int,
        default=CHECKPOINT_EVERY,
        help="steps of training that a killed run can lose",
    )
    command.add_argument("--no-progress", action="store_true", help="no progress bars")
    add_trust(command)
    add_trust_env(command)
    add_listeners(command)


def add_listeners(command: argparse.ArgumentParser) -> None:
    """The options of `listeners`."""
    command.add_argument(
        "--tensorboard",
        action="store_true",
        help="write tensorboard/ into the run folder",
    )
    text = (
        "call it every 100 steps and at every point of a curve, as "
        "function(stage, step, steps, metrics)"
    )
    command.add_argument("--hook", metavar="MODULE:FUNCTION", help=text)


def listeners(options: argparse.Namespace, folder: Path) -> list[Listener]:
    """What was asked for by the options, for the policy in this folder. Raises ImportError, or
    ValueError for a hook that cannot be imported.
    """
    found: list[Listener] = []
    if options.tensorboard:
        found.append(TensorBoard(folder / "tensorboard"))
    if options.hook is not None:
        found.append(import_function(options.hook, "hook"))
    return found


def plot(draw: Callable[[], object]) -> None:
    """Draw a plot, or say what is missing."""
    try:
        draw()
    except ImportError:
        print("plots need matplotlib: pip install 'ddice[plots]'", file=sys.stderr)


@contextlib.contextmanager
def drawn(draw: Callable[[str], None]) -> Iterator[None]:
    """Draw when the block is over, also when its training diverged, was stopped or could not be
    watched: `draw` gets how it ended in a few words, "" where it finished.
    """
    try:
        yield
    except (TrainingDiverged, WatcherFailed, Terminated, KeyboardInterrupt) as error:
        draw(str(error).partition(";")[0] or "stopped")
        raise
    draw("")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes = seconds / 60
    return (
        f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes:.0f} min"
        if minutes < 120
        else f"{minutes / 60:.1f} h"
    )
