"""ddice compare."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ddice.cli.command import (
    add_command,
    add_training_options,
    drawn,
    duration,
    listeners,
    plot,
    read_fields,
)
from ddice.core.storage import write_bytes
from ddice.runs.comparison import CellsFailed, Comparison, Result, compare, render_table
from ddice.runs.comparison.curves_plot import plot_curves
from ddice.runs.comparison.groups import by_dataset
from ddice.runs.comparison.plan import plan
from ddice.runs.comparison.scores_plot import plot_scores
from ddice.runs.comparison.suites import SUITES
from ddice.runs.comparison.table import render_published
from ddice.runs.metrics_figure import plot_metrics
from ddice.runs.options import Tree
from ddice.runs.presets import PRESETS

# what a first comparison changes; --help-all has the rest
FIRST = (
    "backends",
    "extractors",
    "seeds",
    "datasets",
    "executor.kind",
    "recipe.data.source",
    "recipe.steps.prior",
    "recipe.steps.backend",
    "recipe.steps.extractor",
    "recipe.evaluation.episodes",
)


def register(commands: Any) -> None:
    """Add the command."""
    text = (
        "Train and score backends x extractors on one dataset or several; print the table, "
        "behaviour policy first."
    )
    command = add_command(commands, "compare", _compare, text, Comparison, FIRST)
    text = "the recipe to start from: see ddice presets"
    command.add_argument("--preset", default="default", choices=PRESETS, metavar="NAME", help=text)
    text = "a comparison by name: see docs/comparisons.md"
    command.add_argument("--suite", choices=SUITES, metavar="NAME", help=text)
    text = "folder of the files that the suite reads"
    command.add_argument("--files", metavar="FOLDER", default=".", help=text)
    command.add_argument("--config", metavar="FILE", help="JSON file of fields")
    text = "run folder; results that are there stay"
    command.add_argument("--run", metavar="FOLDER", required=True, help=text)
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="print what is left and its predicted time, no more",
    )
    text = "do nothing but the policies that failed before"
    command.add_argument("--only-failed", action="store_true", help=text)
    add_training_options(command)


def _compare(options: argparse.Namespace, rest: list[str]) -> None:
    comparison = Comparison.read(_fields(options, rest), trust=options.trust)
    if options.suite is not None:
        SUITES[options.suite].require(comparison)
    folder = Path(options.run)
    if options.dry_run:
        _print_plan(comparison, folder, options.trust_env)
        return
    listeners(options, folder)  # what is missing is said before anything is trained
    with drawn(lambda ended: _draw(folder, ended)):
        results, failed = _results(comparison, folder, options)
    if results:
        published = render_published(comparison.datasets)
        table = "\n\n".join(filter(None, [render_table(results), published]))
        write_bytes(folder / "table.md", (table + "\n").encode())
        for name, rows in by_dataset(results).items():
            place = folder if name is None else folder / name
            plot(partial(plot_scores, rows, place / "scores.png"))
            plot(partial(plot_curves, rows, folder, place / "curves.png"))
        print(f"\n{table}\n\nresults, plots and policies: {folder}")
    if failed is not None:
        raise failed


def _fields(options: argparse.Namespace, rest: list[str]) -> Tree:
    """Of the suite or the preset, overridden by --config and then by the dotted flags."""
    if options.suite is None:
        base: Tree = {"recipe": PRESETS[options.preset].model_dump(mode="json")}
    elif options.preset == "default":
        base = SUITES[options.suite].comparison(Path(options.files))
    else:
        raise ValueError("a suite has a preset of its own: leave --preset out")
    return read_fields(options, rest, base, Comparison)


def _results(
    comparison: Comparison, folder: Path, options: argparse.Namespace
) -> tuple[list[Result], CellsFailed | None]:
    """What there is, and what failed."""
    try:
        results = compare(
            comparison,
            folder,
            progress=not options.no_progress,
            checkpoint_every=options.checkpoint_every,
            listeners=lambda policy: listeners(options, policy),
            trust_env=options.trust_env,
            only_failed=options.only_failed,
        )
    except CellsFailed as error:
        return error.results, error
    return results, None


def _print_plan(comparison: Comparison, folder: Path, trust_env: Sequence[str]) -> None:
    tasks = plan(comparison, folder, trust_env=trust_env)
    for task in tasks:
        time = duration(task.seconds) if task.count else "found trained"
        print(f"{task.name:44} {task.count:9,} {task.unit:8} {time:>13}")
    total = duration(sum(task.seconds for task in tasks))
    asked = any(task.recipe.evaluation.every is not None for task in comparison.tasks)
    curves = "; learning curves come on top" if asked else ""
    print(f"time: {total} as measured now; more while this machine does other things{curves}")


def _draw(folder: Path, ended: str) -> None:
    """The metrics of every policy, where they or their end are newer than their picture."""
    with_datasets = folder.glob("*/seed-*/*/metrics")
    for metrics in sorted([*folder.glob("seed-*/*/metrics"), *with_datasets]):
        policy, scores = metrics.parent, metrics.parent / "evaluation.json"
        drawn_from = [*metrics.iterdir(), *([scores] if scores.exists() else [])]
        picture = policy / "metrics.png"
        if picture.exists() and all(
            path.stat().st_mtime <= picture.stat().st_mtime for path in drawn_from
        ):
            continue
        how = "" if scores.exists() else ended
        plot(partial(plot_metrics, metrics, picture, how))
