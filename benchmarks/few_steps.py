"""Returns and latency of trained policies at 15, 10, 8 and 5 evaluations: a table and a plot from
the run folders of `ddice compare`.

    ddice compare --config benchmarks/few-steps-umaze.json --run runs/few-steps-umaze
    ddice compare --config benchmarks/few-steps-hopper.json --run runs/few-steps-hopper
    python benchmarks/few_steps.py runs/few-steps-umaze runs/few-steps-hopper

The solver is read in acting alone: what a comparison trains, it trains once for all of them.
Latency: one observation -> one action with the engine "auto", one thread; rounds alternate between
the policies, so that their ratio is of the same minutes of the same machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import description
from ddice import load_policy
from ddice.core.statistics import iqm, stratified_interval
from ddice.diffusion.samplers import DiffusionSampler
from ddice.runs.comparison import Results
from ddice.runs.comparison.groups import grouped, run_means

OUT = Path(__file__).parent / "results" / "few-steps"
ROUNDS = 60
WARM_UP = 5


class Point(NamedTuple):
    """One solver of one run: `scores` of the seeds, and the median seconds of a decision."""

    solver: str
    evaluations: int
    engine: str
    scores: np.ndarray  # (R, 1)
    seconds: float


def points(run: Path) -> list[Point]:
    """Every policy of a run but the behaviour policy, in the order of its results."""
    groups = [
        rows
        for (backend, _), rows in grouped(Results(run / "results.jsonl").rows).items()
        if backend is not None
    ]
    policies = [load_policy(run / rows[0].folder, device="cpu", engine="auto") for rows in groups]
    observation = np.zeros(policies[0].spec.observations.size, dtype=np.float32)
    times: list[list[float]] = [[] for _ in policies]
    for _ in range(WARM_UP + ROUNDS):
        for policy, taken in zip(policies, times, strict=True):
            started = time.perf_counter()
            policy.decide(
                torch.from_numpy(observation)[None],
                policy.sampler.latents(policy.config.candidates, policy.spec.actions.size)[None],
            )
            taken.append(time.perf_counter() - started)
    found = []
    for policy, rows, taken in zip(policies, groups, times, strict=True):
        assert isinstance(policy.sampler, DiffusionSampler)
        evaluations = policy.sampler.config.solver.evaluations
        found.append(
            Point(
                rows[0].extractor,
                evaluations,
                policy.engine.name,
                run_means(rows),
                statistics.median(taken[WARM_UP:]),
            )
        )
    return found


def table(name: str, found: Sequence[Point]) -> list[str]:
    """Rows of the table of one run; times faster than its first policy."""
    lines = []
    for point in found:
        low, high = stratified_interval(point.scores, iqm)
        each = " ".join(f"{score:.1f}" for score in point.scores[:, 0])
        faster = found[0].seconds / point.seconds
        lines.append(
            f"| {name} | {point.solver} | {point.evaluations} | {iqm(point.scores):.1f} "
            f"[{low:.1f}, {high:.1f}] | {each} | {faster:.2f} |"
        )
    return lines


def plot(runs: dict[str, list[Point]], path: Path) -> None:
    """Return against latency, a line per run, the seeds as small dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(runs), figsize=(5.2 * len(runs), 3.6), layout="constrained", squeeze=False
    )
    for axis, (name, found) in zip(axes[0], runs.items(), strict=True):
        latency = [point.seconds / found[0].seconds for point in found]
        axis.plot(latency, [iqm(point.scores) for point in found], "o-", color="tab:blue")
        for index, (x, point) in enumerate(zip(latency, found, strict=True)):
            axis.plot(
                [x] * len(point.scores), point.scores[:, 0], ".", color="tab:gray", markersize=5
            )
            axis.annotate(
                point.solver,
                (x, iqm(point.scores)),
                textcoords="offset points",
                xytext=(5, -12 if index % 2 else 6),
                fontsize=8,
            )
        axis.set(
            title=name,
            xlabel=f"time of a decision, in those of {found[0].solver}",
            ylabel="score: IQM, and each seed",
        )
        axis.set_xlim(0, 1.15)
        axis.set_ylim(0, 1.08 * max(float(point.scores.max()) for point in found))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of ddice compare")
    options = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    runs = {}
    lines = [
        "| task | solver | evaluations | IQM [95 %] | each seed | times faster |",
        "|---|---|---|---|---|---|",
    ]
    for run in options.runs:
        recipe = json.loads((run / "comparison.json").read_text())["recipe"]
        name = (
            recipe["data"]["source"].rpartition("/")[0].rpartition("/")[2]
            + "/"
            + recipe["data"]["source"].rpartition("/")[2]
        )
        runs[name] = points(run)
        lines += table(name, runs[name])
    about = description("cpu")
    engines = ", ".join(sorted({point.engine for found in runs.values() for point in found}))
    lines += [
        "",
        f"Latency: one observation, engine {engines}, {about['machine']}, one thread, torch "
        f"{about['torch']}.",
    ]
    (OUT / "table.md").write_text("\n".join(lines) + "\n")
    plot(runs, OUT / "few_steps.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
