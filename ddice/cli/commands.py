"""The command line: ddice train | status | evaluate | diagnose | picture | compare | results |
report | export | push | pull | data | presets | cache | plugins | completion.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import TextIO

from pydantic import ValidationError

from ddice.cli import (
    cache,
    compare,
    completion,
    data,
    diagnose,
    evaluate,
    export,
    picture,
    plugins,
    presets,
    report,
    results,
    share,
    status,
    train,
)
from ddice.cli.command import Run, names_modules, refuse
from ddice.core.reading import plain_text
from ddice.parts.loop import Terminated, TrainingDiverged
from ddice.parts.watcher import WatcherFailed
from ddice.runs.comparison import CellsFailed
from ddice.runs.options import explain

COMMANDS = (
    train, status, evaluate, diagnose, picture, compare, results, report, export, share, data,
    presets, cache, plugins, completion,
)  # fmt: skip
# what is said in its own words, without where it was raised
EXPLAINED = (
    ValueError, TypeError, OSError, ImportError, TrainingDiverged, WatcherFailed, CellsFailed,
)  # fmt: skip
EXAMPLES = """\
examples:
  ddice data make pointmaze-umaze
  ddice data describe hopper-medium-v2.hdf5 --env Hopper-v5 --plot hopper.png
  ddice data check mine.npz --action-bounds '[-1, 1]'
  ddice data collect my/pendulum-random-v0 --env Pendulum-v1 --policy random --steps 20000
  ddice train --run runs/umaze --backend.temperature 0.3 --extractor.candidates 8
  ddice presets diff official default
  ddice train --preset official --dry-run
  ddice status runs/umaze
  ddice evaluate runs/umaze --episodes 100 --render runs/umaze/film.gif
  ddice picture runs/umaze
  ddice compare --run runs/grid --backends piecewise_f,optidice \\
    --extractors weighted_bc,guide_then_select --seeds 0,1,2
  ddice report runs/grid
"""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 1 for an error that is explained in a line, 143 after
    SIGTERM. Ctrl-C is raised.
    """
    warnings.showwarning = _show_warning
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if not hasattr(options, "run_command"):
        parser.print_help()
        return 0
    command: Run = options.run_command
    if names_modules(options) and "" not in sys.path:
        sys.path.append("")  # last: nothing in the working directory stands before a package
    try:
        if not options.takes_fields:
            refuse(options, rest)
        return command(options, rest) or 0
    except ValidationError as error:
        return _fail(explain(error, options.takes_fields))
    except EXPLAINED as error:
        return _fail(str(error))
    except Terminated as error:
        print(f"\n{error}", file=sys.stderr)
        return int(error.code or 0)


def _fail(message: str) -> int:
    print(f"error: {plain_text(message)}", file=sys.stderr)
    return 1


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {plain_text(str(message))}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="ddice", description=__doc__, epilog=EXAMPLES, formatter_class=raw, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"ddice {version('ddice')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.register(commands)
    return parser
