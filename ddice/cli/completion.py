"""ddice completion: commands, options, fields and choices for the tabulator key of a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ddice.cli.command import add_command
from ddice.runs.options import describe_fields

TEXT = """\
Print what completes commands, options, fields and choices in a shell.

bash:  ddice completion bash > ~/.local/share/bash-completion/completions/ddice
       (or: eval "$(ddice completion bash)", which takes the time of a start)
"""
SCRIPT = """\
# made by `ddice completion bash`
_ddice() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  local path="" words="" one
  for one in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "${{path:+$path }}$one" in
      {paths}) path="${{path:+$path }}$one" ;;
      *) break ;;
    esac
  done
  case "$path:$before" in
{choices}
  esac
  if [ -z "$words" ]; then
    case "$path" in
{words}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _ddice ddice
"""


def register(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "completion", partial(_completion, commands), TEXT)
    command.add_argument("shell", choices=["bash"])


def _completion(commands: Any, options: argparse.Namespace, rest: list[str]) -> None:
    print(script(commands.choices), end="")


def script(commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """The completion of these commands for bash: a function that starts no program."""
    parsers = dict(_below("", commands))
    paths = "|".join(f'"{path}"' for path in parsers)
    words = [f'      "") words="{" ".join([*commands, "--help", "--version"])}" ;;']
    words += [
        f'      "{path}") words="{" ".join(_words(one))}" ;;' for path, one in parsers.items()
    ]
    choices = [
        f'    "{path}:{option}") words="{" ".join(values)}" ;;'
        for path, parser in parsers.items()
        for option, values in _choices(parser)
    ]
    return SCRIPT.format(paths=paths, words="\n".join(words), choices="\n".join(choices))


def _below(
    path: str, commands: Mapping[str, argparse.ArgumentParser]
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command by its path, "data make" after "data"."""
    for name, parser in commands.items():
        here = f"{path} {name}".strip()
        yield here, parser
        yield from _below(here, _actions(parser))


def _actions(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """What may follow a command: actions, choices without a dash, options, fields."""
    own = [option for one in parser._actions for option in one.option_strings if option[:2] == "--"]
    places = [
        str(value)
        for one in parser._actions
        if not one.option_strings
        for value in one.choices or ()
    ]
    fields = parser.get_default("takes_fields")
    lines = [] if fields is None else describe_fields(fields)
    names = [line.split()[0] for line in lines]
    named = [name for name in names if name.startswith("--") and not name.endswith(".*")]
    return [*dict.fromkeys([*places, *own, *named])]


def _choices(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    for one in parser._actions:
        if one.choices and one.option_strings:
            yield one.option_strings[-1], [str(value) for value in one.choices]
