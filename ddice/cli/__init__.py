"""The command line; one module per command."""

from ddice.cli.main import main

__all__ = ["main"]
