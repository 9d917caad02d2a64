"""ddice train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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
from ddice.data import Transitions
from ddice.runs.forecast import forecast
from ddice.runs.metrics_figure import plot_metrics
from ddice.runs.presets import PRESETS, fitting_preset, unpublished
from ddice.runs.recipe import Recipe
from ddice.runs.training import train

# what a first run changes; --help-all has the rest
FIRST = (
    "data.source",
    "data.env",
    "data.action_bounds",
    "backend.kind",
    "backend.temperature",
    "extractor.kind",
    "extractor.candidates",
    "steps.prior",
    "steps.backend",
    "steps.extractor",
    "evaluation.episodes",
    "seed",
    "device",
)


def register(commands: Any) -> None:
    """Add the command."""
    text = (
        "Train a recipe, save its policy and evaluate it; the same command resumes a run that "
        "was stopped."
    )
    command = add_command(commands, "train", _train, text, Recipe, FIRST)
    command.add_argument(
        "--preset",
        choices=PRESETS,
        metavar="NAME",
        help="the recipe to start from: see ddice presets",
    )
    command.add_argument("--config", metavar="FILE", help="JSON file of fields, over the preset")
    command.add_argument("--run", metavar="FOLDER", help="run folder: policy, metrics, scores")
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="print sizes and predicted time, train nothing",
    )
    add_training_options(command)


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    name = options.preset or "default"
    preset = PRESETS[name].model_dump(mode="json")
    recipe = Recipe.read(read_fields(options, rest, preset, Recipe), trust=options.trust)
    for line in unpublished(name, recipe):
        print(line, file=sys.stderr)
    if options.dry_run:
        _print_forecast(recipe, options.trust_env)
        return
    if options.tensorboard and options.run is None:
        raise ValueError("--tensorboard writes into the run folder: give --run")
    heard = listeners(options, Path(options.run or "."))
    with drawn(lambda ended: _draw(options.run, ended)):
        _, scores = train(
            recipe,
            options.run,
            progress=not options.no_progress,
            checkpoint_every=options.checkpoint_every,
            listeners=heard,
            trust_env=options.trust_env,
            look=_say_what_fits if options.preset is None and options.config is None else None,
        )
    if options.run is None:
        print("the policy was not kept: give --run for that (trained parts are found again)")
    else:
        print(f"policy: {Path(options.run) / 'policy'}")
    if scores is not None:
        print(scores)


def _say_what_fits(data: Transitions) -> None:
    """Name the preset that fits the data, to those who asked for none."""
    name, reasons = fitting_preset(data.describe())
    if name != "default":
        print(f"--preset {name} fits these data: {reasons[0]}", file=sys.stderr)


def _draw(run: str | None, ended: str) -> None:
    if run is not None:
        plot(lambda: plot_metrics(Path(run, "metrics"), Path(run, "metrics.png"), ended))


def _print_forecast(recipe: Recipe, trust_env: Sequence[str]) -> None:
    data = recipe.data.load(trust_env)
    stages = forecast(recipe, data, trust_env=trust_env)
    table = len(data) * (2 * data.spec.observations.size + data.spec.actions.size + 3) * 4
    # Parameters, their average, gradients and two moments of Adam, 4 bytes each.
    training = max((stage.parameters for stage in stages), default=0) * 20
    curve = recipe.evaluation.every is not None
    print(f"{'stage':10} {'parameters':>12} {'steps':>12} {'predicted':>12}")
    for stage in stages:
        print(
            f"{stage.stage:10} {stage.parameters:12,} {stage.steps:12,} "
            f"{duration(stage.seconds):>12}"
        )
    print(
        f"memory: {table / 2**20:,.0f} MiB of transitions, {training / 2**20:,.1f} MiB for the "
        "largest part in training"
    )
    print(
        f"time: {duration(sum(stage.seconds for stage in stages))} of training, from measured "
        f"steps; {'evaluation and the learning curve come' if curve else 'evaluation comes'} on top"
    )
