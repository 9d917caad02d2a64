"""ddice diagnose."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddice.cli.command import add_command, add_trust, add_trust_env
from ddice.core.storage import write_bytes
from ddice.runs.diagnosis import diagnosis

TEXT = """\
Say why the policies of a run win or lose, from the run alone: nothing is played.

Writes diagnosis.md into the run folder, a comparison's or that of one recipe.

Of every policy, on states of its data and with the same noise for all:
  outside  share of candidates with a coordinate outside of the bounds, before they are mapped
           into them
  spread   deviation of the candidates of a state, over that of the behaviour policy's
  moved    distance from the behaviour policy's candidate of the same noise, over that deviation
  agree    correlation of that move between two seeds: 1 where all move alike, 0 where it is noise
  rank     rank correlation between two seeds of Q over the behaviour policy's candidates: 0 where
           selection is noise of training
  length   mean number of steps of an evaluation episode

Of every backend, on all rows of its data; its trained networks must still be in the cache:
  V and return    correlation of V(s) with the discounted return that was observed from there on
  V - return      mean difference, in deviations of the return: far above 0, V has run away
  weighted        return of the episodes of ratio-weighted rows, over that of all: below 1, ratios
                  prefer bad episodes
  before falling  mean ratio of the last 50 rows before a termination, over the mean of all: above
                  1, ratios prefer what leads there
"""


def register(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "diagnose", _diagnose, TEXT)
    command.add_argument("path", help="a run folder of ddice compare or ddice train")
    add_trust(command)
    add_trust_env(command)


def _diagnose(options: argparse.Namespace, rest: list[str]) -> None:
    run = Path(options.path)
    text = diagnosis(run, trust=options.trust, trust_env=options.trust_env)
    write_bytes(run / "diagnosis.md", (text + "\n").encode())
    print(text)
