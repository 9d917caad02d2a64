"""ddice plugins."""

from __future__ import annotations

import argparse
from typing import Any

from ddice.cli.command import add_command
from ddice.core import plugins
from ddice.dice_backends import AnyBackend
from ddice.dice_backends.divergences import Divergence
from ddice.dice_backends.rewards import AnyReward
from ddice.diffusion.networks import AnyEncoder, AnyScore, AnyTime
from ddice.diffusion.prior import AnyPrior
from ddice.diffusion.samplers import AnySampler
from ddice.diffusion.schedule import AnySchedule
from ddice.diffusion.solvers import AnySolver
from ddice.extractors import AnyExtractor

UNIONS = (
    AnyBackend,
    Divergence,
    AnyEncoder,
    AnyExtractor,
    AnyPrior,
    AnyReward,
    AnySampler,
    AnySchedule,
    AnyScore,
    AnySolver,
    AnyTime,
)


def register(commands: Any) -> None:
    """Add the command."""
    add_command(
        commands,
        "plugins",
        _plugins,
        "List the parts that other packages offer, and why some cannot be imported.",
    )


def _plugins(options: argparse.Namespace, rest: list[str]) -> None:
    found = plugins.survey(UNIONS)
    if found:
        print("\n".join(map(str, found)))
    else:
        print(f"no package offers entry points of {', '.join(plugins.GROUPS)}")
