"""ddice plugins."""

from __future__ import annotations

import argparse
from typing import Any

from ddice.cli.command import add_command
from ddice.core import plugins
from ddice.dice_backends import BackendConfig
from ddice.extractors import ExtractorConfig


def register(commands: Any) -> None:
    """Add the command."""
    add_command(
        commands,
        "plugins",
        _plugins,
        "List the backends and extractors that other packages offer, and why some cannot be "
        "imported.",
    )


def _plugins(options: argparse.Namespace, rest: list[str]) -> None:
    found = plugins.survey({plugins.BACKENDS: BackendConfig, plugins.EXTRACTORS: ExtractorConfig})
    print(
        "\n".join(map(str, found))
        if found
        else f"no package offers entry points {plugins.BACKENDS} or {plugins.EXTRACTORS}"
    )
