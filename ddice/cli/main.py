"""The way in: what takes long is imported inside, so that Ctrl-C is heard from the start."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 1 for an error that is explained in a line, 130 after
    Ctrl-C, 143 after SIGTERM.
    """
    try:
        # PyTorch alone takes seconds.
        from ddice.cli.commands import run

        return run(arguments)
    except KeyboardInterrupt as error:
        print(f"\n{str(error) or 'stopped'}", file=sys.stderr)
        return 130
