"""ddice compare."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddice.cli.command import add_command, add_listeners, add_trust, listeners, plot, read_fields
from ddice.core.storage import write_bytes
from ddice.runs.comparison import Comparison, compare, render_table
from ddice.runs.comparison.scores_plot import plot_scores
from ddice.runs.metrics import plot_metrics
from ddice.runs.presets import PRESETS
from ddice.runs.training import CHECKPOINT_EVERY


def register(commands: Any) -> None:
    """Add the command."""
    text = (
        "Train and score backends x extractors on one dataset; print the table, behaviour "
        "policy first."
    )
    command = add_command(commands, "compare", _compare, text, Comparison)
    text = "the recipe that data, prior, steps and evaluation start from: see ddice presets"
    command.add_argument("--preset", default="default", choices=PRESETS, metavar="NAME", help=text)
    command.add_argument("--config", help="JSON file of fields")
    command.add_argument(
        "--run", required=True, help="run folder; results that are there are not computed again"
    )
    command.add_argument(
        "--checkpoint-every",
        type=int,
        default=CHECKPOINT_EVERY,
        help="steps of training that a killed run can lose",
    )
    command.add_argument("--no-progress", action="store_true", help="no progress bars")
    add_trust(command)
    add_listeners(command)


def _compare(options: argparse.Namespace, rest: list[str]) -> None:
    base = {"recipe": PRESETS[options.preset].model_dump(mode="json")}
    fields = read_fields(options, rest, base, Comparison)
    comparison = Comparison.read(fields, trust=options.trust)
    folder = Path(options.run)
    listeners(options, folder)  # what is missing is said before anything is trained
    results = compare(
        comparison,
        folder,
        progress=not options.no_progress,
        checkpoint_every=options.checkpoint_every,
        listeners=lambda policy: listeners(options, policy),
    )
    table = render_table(results)
    write_bytes(folder / "table.md", (table + "\n").encode())
    plot(lambda path: plot_scores(results, path / "scores.png"), folder)
    for metrics in sorted(folder.glob("seed-*/*/metrics")):
        picture = metrics.parent / "metrics.png"
        if not picture.exists() or any(
            path.stat().st_mtime > picture.stat().st_mtime for path in metrics.iterdir()
        ):
            plot(lambda path: plot_metrics(path / "metrics", path / "metrics.png"), metrics.parent)
    print(f"\n{table}\n\nresults, plots and policies: {folder}")
