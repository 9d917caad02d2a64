"""The command line: ddice train | evaluate | compare | data | cache | plugins."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from pydantic import BaseModel, ValidationError

from ddice import cache, plugins
from ddice.comparison import Comparison, compare, render_table
from ddice.comparison.report import plot_metrics, plot_scores
from ddice.config import import_function, merge, unknown_name
from ddice.dice_backends import BackendConfig
from ddice.evaluation import evaluate
from ddice.extractors import ExtractorConfig
from ddice.loop import TrainingDiverged
from ddice.options import Tree, describe_fields, explain, parse_flags, read_config
from ddice.policy import load_policy
from ddice.presets import PRESETS
from ddice.recipe import DataSource, Recipe
from ddice.storage import write_bytes
from ddice.training import CHECKPOINT_EVERY, forecast, train

MazeSize = Literal["umaze", "medium", "large"]
EXAMPLES = """\
examples:
  ddice data make pointmaze-umaze
  ddice train --run runs/umaze --backend.temperature 0.3 --extractor.candidates 8
  ddice train --preset official --dry-run
  ddice evaluate runs/umaze --episodes 100
  ddice compare --run runs/grid --backends piecewise_f,optidice --extractors weighted_bc,guide_then_select --seeds 0,1,2
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 1 for an error that is explained in a line, 130 after Ctrl-C."""
    warnings.showwarning = _show_warning
    sys.path.insert(0, "")  # "module:function" options name modules of the working directory too
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if not hasattr(options, "run_command"):
        parser.print_help()
        return 0
    command: Callable[[argparse.Namespace, list[str]], None] = options.run_command
    try:
        if not options.takes_fields:
            _refuse(options, rest)
        command(options, rest)
    except ValidationError as error:
        return _fail(explain(error, options.takes_fields))
    except (ValueError, TypeError, OSError, ImportError, TrainingDiverged) as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        print(f"\n{str(error) or 'stopped'}", file=sys.stderr)
        return 130
    return 0


def _own_options(options: argparse.Namespace) -> list[str]:
    """The options of a command that are no fields."""
    return [name.replace("_", "-") for name in vars(options) if name not in ("run_command", "takes_fields", "path", "action", "name")]


def _refuse(options: argparse.Namespace, rest: list[str]) -> None:
    """Raise ValueError when there are arguments that a command does not know."""
    if rest:
        name = rest[0].partition("=")[0].removeprefix("--")
        raise ValueError(unknown_name(name, _own_options(options), "option") if rest[0].startswith("--") else f"unexpected argument {rest[0]!r}")


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="ddice", description=__doc__, epilog=EXAMPLES, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"ddice {version('ddice')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace, list[str]], None], text: str, fields: type[BaseModel] | None = None) -> Any:
        epilog = None if fields is None else f"every field of the {fields.__name__.lower()} is an option:\n" + "\n".join(describe_fields(fields))
        command = commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=raw, allow_abbrev=False)
        command.set_defaults(run_command=function, takes_fields=fields)
        return command

    command = add("train", _train, "Train a recipe, save its policy and evaluate it; the same command resumes a run that was stopped.", Recipe)
    command.add_argument("--preset", default="default", choices=sorted(PRESETS), help="the recipe to start from")
    command.add_argument("--config", help="JSON file of fields, over the preset")
    command.add_argument("--run", help="run folder: recipe.json, metrics, policy, evaluation.json and plots")
    command.add_argument("--dry-run", action="store_true", help="print parameters, memory and predicted time, and train nothing")
    command.add_argument("--checkpoint-every", type=int, default=CHECKPOINT_EVERY, help="steps of training that a killed run can lose")
    command.add_argument("--no-progress", action="store_true", help="no progress bars")

    command = add("evaluate", _evaluate, "Play a saved policy in its evaluation environment.")
    command.add_argument("path", help="a run folder, or the folder of a policy")
    command.add_argument("--env", help="id of another environment")
    command.add_argument("--episodes", type=int, default=100)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--parallel", type=int, default=50)
    command.add_argument("--device", default="auto")
    command.add_argument("--deterministic", action="store_true", help="fixed latents and argmax")
    command.add_argument("--q", help='"module:function" of the critic, for a policy that selects by a callable of your own')
    command.add_argument("--json", help="write the full result to this file")
    command.add_argument("--no-progress", action="store_true", help="no progress bars")

    command = add("compare", _compare, "Train and score backends x extractors on one dataset; print the table, behaviour policy first.", Comparison)
    command.add_argument("--preset", default="default", choices=sorted(PRESETS), help="the recipe that data, prior, steps and evaluation start from")
    command.add_argument("--config", help="JSON file of fields")
    command.add_argument("--run", required=True, help="run folder; results that are there are not computed again")
    command.add_argument("--checkpoint-every", type=int, default=CHECKPOINT_EVERY, help="steps of training that a killed run can lose")
    command.add_argument("--no-progress", action="store_true", help="no progress bars")

    command = add("data", _data, "Make or describe datasets.", DataSource)
    command.add_argument("action", choices=["make", "describe"])
    command.add_argument("name", nargs="?", help="make: pointmaze-umaze, pointmaze-medium, pointmaze-large; describe: a source")
    command.add_argument("--steps", type=int, default=1_000_000, help="make: transitions")
    command.add_argument("--generation-seed", type=int, default=123, help="make: seed of the generation")
    command.add_argument("--no-progress", action="store_true", help="no progress bars")

    command = add("cache", _cache, "List or delete trained parts (DDICE_CACHE, else ~/.cache/ddice).")
    command.add_argument("action", choices=["list", "clear"])
    add("plugins", _plugins, "List the backends and extractors that other packages offer, and why some cannot be imported.")
    return parser


def _fields(options: argparse.Namespace, rest: list[str], base: Tree, model: type[BaseModel]) -> Tree:
    config = {} if options.config is None else read_config(options.config)
    flags = parse_flags(rest)
    for name in flags:
        if name not in model.model_fields:
            if model is Comparison and name in Recipe.model_fields:
                raise ValueError(f"unknown option {name!r}: it is a field of the recipe that is compared, --recipe.{name}")
            raise ValueError(unknown_name(name, [*model.model_fields, *_own_options(options)], "option"))
    return dict(merge(merge(base, config), flags))


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    recipe = Recipe.model_validate(_fields(options, rest, PRESETS[options.preset].model_dump(mode="json"), Recipe))
    if options.dry_run:
        _print_forecast(recipe)
        return
    _, scores = train(recipe, options.run, progress=not options.no_progress, checkpoint_every=options.checkpoint_every)
    if options.run is None:
        print("the policy was not kept: give --run for that (trained parts are found again)")
    else:
        _plot(lambda folder: plot_metrics(folder / "metrics", folder / "metrics.png"), Path(options.run))
        print(f"policy: {Path(options.run) / 'policy'}")
    if scores is not None:
        print(scores)


def _print_forecast(recipe: Recipe) -> None:
    data = recipe.data.load()
    stages = forecast(recipe, data)
    table = len(data) * (2 * data.spec.observations.size + data.spec.actions.size + 3) * 4
    # Parameters, their average, gradients and two moments of Adam, 4 bytes each.
    training = max((stage.parameters for stage in stages), default=0) * 20
    print(f"{'stage':10} {'parameters':>12} {'steps':>12} {'predicted':>12}")
    for stage in stages:
        print(f"{stage.stage:10} {stage.parameters:12,} {stage.steps:12,} {_duration(stage.seconds):>12}")
    print(f"memory: {table / 2**20:,.0f} MiB of transitions, {training / 2**20:,.1f} MiB for the largest part in training")
    print(f"time: {_duration(sum(stage.seconds for stage in stages))} of training, from measured steps; evaluation comes on top")


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    path = Path(options.path)
    critic = None if options.q is None else import_function(options.q, "--q")
    policy = load_policy(path / "policy" if (path / "policy" / "policy.json").exists() else path, device=options.device, q=critic)
    scores = evaluate(
        policy,
        options.env,
        episodes=options.episodes,
        seed=options.seed,
        parallel=options.parallel,
        deterministic=options.deterministic,
        progress=not options.no_progress,
    )
    if options.json:
        write_bytes(Path(options.json), scores.model_dump_json(indent=2).encode())
    print(scores)


def _compare(options: argparse.Namespace, rest: list[str]) -> None:
    base = {"recipe": PRESETS[options.preset].model_dump(mode="json")}
    comparison = Comparison.model_validate(_fields(options, rest, base, Comparison))
    folder = Path(options.run)
    results = compare(comparison, folder, progress=not options.no_progress, checkpoint_every=options.checkpoint_every)
    table = render_table(results)
    write_bytes(folder / "table.md", (table + "\n").encode())
    _plot(lambda path: plot_scores(results, path / "scores.png"), folder)
    for metrics in sorted(folder.glob("seed-*/*/metrics")):
        picture = metrics.parent / "metrics.png"
        if not picture.exists() or any(path.stat().st_mtime > picture.stat().st_mtime for path in metrics.iterdir()):
            _plot(lambda path: plot_metrics(path / "metrics", path / "metrics.png"), metrics.parent)
    print(f"\n{table}\n\nresults, plots and policies: {folder}")


def _plot(draw: Callable[[Path], object], folder: Path) -> None:
    try:
        draw(folder)
    except ImportError:
        print("plots need matplotlib: pip install 'ddice[plots]'", file=sys.stderr)


def _data(options: argparse.Namespace, rest: list[str]) -> None:
    if options.action == "make":
        from ddice.collection import make_pointmaze

        _refuse(options, rest)
        sizes: dict[str, MazeSize] = {f"pointmaze-{size}": size for size in get_args(MazeSize)}
        if options.name not in sizes:
            raise ValueError(f"expected one of {', '.join(sizes)}, got {options.name!r}")
        size = sizes[options.name]
        made = make_pointmaze(size, steps=options.steps, seed=options.generation_seed, progress=not options.no_progress)
        print(f"{made} is ready: ddice.load_dataset({made!r}), or ddice train --data.source {made}")
        return
    fields = {**({} if options.name is None else {"source": options.name}), **parse_flags(rest)}
    print(DataSource.model_validate(fields).load().describe())


def _cache(options: argparse.Namespace, rest: list[str]) -> None:
    if options.action == "clear":
        print(f"freed {cache.clear() / 2**20:.1f} MiB in {cache.cache_folder()}")
        return
    for found in cache.entries():
        about = found.about
        done = "trained" if found.state.exists() else "stopped"
        parts = "+".join(about["parts"])
        print(
            f"{about['created']}  {about['stage']:10} {parts:32} {about['steps']:>9,} steps  seed {about['seed']}  {done:8} "
            f"{found.size / 2**20:6.1f} MiB  {json.dumps(about['data'])}  {found.folder.name[:8]}"
        )
    print(cache.cache_folder())


def _plugins(options: argparse.Namespace, rest: list[str]) -> None:
    found = plugins.survey({plugins.BACKENDS: BackendConfig, plugins.EXTRACTORS: ExtractorConfig})
    print("\n".join(map(str, found)) if found else f"no package offers entry points {plugins.BACKENDS} or {plugins.EXTRACTORS}")


if __name__ == "__main__":
    sys.exit(main())
