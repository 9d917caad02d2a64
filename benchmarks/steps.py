"""Training steps of every part: against plain research code, over the time of their matrix products
alone, and what checkpoints cost. One thread of a CPU, less than two minutes on a quiet one.

    python benchmarks/steps.py NAME   # writes results/steps/NAME.json, then benchmarks/README.md

All three are timed in turn in one process, by the time of the processor that they take, so that a
busy machine disturbs the ratios little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent))

import ddice
from benchmarks import plain_steps as plain
from benchmarks.machine import description
from benchmarks.render_speed import STEP_RESULTS, render
from ddice.data import Transitions
from ddice.dice_backends import DeterministicDice, PiecewiseF
from ddice.extractors import GaussianBC, GuideThenSelect, WeightedBC
from ddice.parts.loop import Checkpoint
from ddice.parts.stage import Stage, alone

STATE, ACTION = 11, 3  # Hopper's sizes
ROWS, STEPS, ROUNDS = 20_000, 10, 21
LAST = 10**6  # the published budget
CHECKPOINT_EVERY = 1000  # the default of `fit` and of recipes
PRODUCTS = {"aten.mm.default", "aten.addmm.default", "aten.bmm.default", "aten.baddbmm.default"}


def made_up(rows: int = ROWS) -> Transitions:
    """Random numbers, with episodes of 1000 steps."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(rows + 1, STATE)).astype(np.float32)
    arrays = {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": rng.uniform(-1, 1, size=(rows, ACTION)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminations": np.zeros(rows, bool),
        "truncations": np.arange(1, rows + 1) % 1000 == 0,
    }
    return ddice.load_dataset(arrays, action_bounds=(-1.0, 1.0))


def stages(data: Transitions) -> dict[str, tuple[Stage, plain.Step]]:
    """Every part with its default configuration, and its plain writing. Raises ValueError where
    the two do not train as many numbers.
    """
    prior = ddice.DiffusionPrior().build(data.spec, 0)
    pair = PiecewiseF().build(data.spec, 0)
    values = DeterministicDice().build(data.spec, 0)
    guide = GuideThenSelect().build(data.spec, 0, prior)
    weighted = WeightedBC().build(data.spec, 0, prior)
    gaussian = GaussianBC().build(data.spec, 0)
    critic = plain.Critic(STATE, ACTION, norm=pair.config.critic.layer_norm)
    plainly: dict[str, plain.Step] = {
        "DiffusionPrior": plain.prior(data, prior),
        "PiecewiseF": plain.backend(data, pair),
        "DeterministicDice": plain.deterministic(data, values),
        "GuideThenSelect": plain.guidance(data, guide, critic),
        "WeightedBC": plain.weighted_bc(data, weighted, critic),
        "GaussianBC": plain.gaussian_bc(data, gaussian, critic),
    }
    ours = (
        *(alone(part, steps=LAST) for part in (prior, pair, values)),
        *(part.stage(pair, steps=LAST) for part in (guide, weighted, gaussian)),
    )
    found = {}
    for (name, step), stage in zip(plainly.items(), ours, strict=True):
        for part in stage.parts.values():
            part.prepare(data)
            part.until(stage.stop)
        found[name] = (stage.over(data), step)
    return found


class Recorder(TorchDispatchMode):
    """The matrix products of what runs inside, with their operands."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Any, list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if str(func) in PRODUCTS:
            self.products.append((func, [alike(x) for x in args if torch.is_tensor(x)]))
        return func(*args, **(kwargs or {}))


def alike(x: Tensor) -> Tensor:
    """A copy that lies in memory as x does, transposed or not."""
    transposed = x.ndim > 1 and x.mT.is_contiguous()
    return x.detach().mT.clone().mT if transposed else x.detach().clone()


def processor_time(call: Callable[[], object], times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def wall_time(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(
    data: Transitions, stage: Stage, plainly: plain.Step, *, steps: int, rounds: int
) -> dict[str, float]:
    """Medians over rounds: times against the plain loop, over the products, and of checkpoints."""
    numbers = itertools.count()

    def step() -> None:
        stage.step(data, next(numbers))

    for _ in range(3):  # caches, optimisers, and the table of ratios
        step()
        plainly()
    with Recorder() as recorded:
        step()

    def products() -> None:
        for function, operands in recorded.products:
            function(*operands)

    times = [
        [processor_time(call, steps) for call in (step, plainly, products)] for _ in range(rounds)
    ]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint", "benchmark")
        # By the clock, in turn: a file is waited for without work.
        waits = [
            (wall_time(step), wall_time(lambda: checkpoint.save(stage, 1))) for _ in range(rounds)
        ]
    ours, theirs, floor = (statistics.median(column) for column in zip(*times, strict=True))
    wait, save = (statistics.median(column) for column in zip(*waits, strict=True))
    return {
        "times_faster": statistics.median(b / a for a, b, _ in times),
        "over_products": statistics.median(a / c for a, _, c in times),
        "ms": 1e3 * ours,
        "plain_ms": 1e3 * theirs,
        "products_ms": 1e3 * floor,
        "products": len(recorded.products),
        "checkpoint_percent": 100 * save / (save + CHECKPOINT_EVERY * wait),
    }


def result(name: str, *, rows: int, steps: int, rounds: int) -> dict[str, Any]:
    """All parts on this machine, as it is kept."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, parts = made_up(rows), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that ran away: nothing is learned here
        for part, (stage, plainly) in stages(data).items():
            found = measure(data, stage, plainly, steps=steps, rounds=rounds)
            parts[part] = {key: float(f"{value:.4g}") for key, value in found.items()}
            print(part, parts[part], flush=True)
    about = {"machine": description("cpu"), "checkpoint_every": CHECKPOINT_EVERY}
    return {"name": name, "measured": time.strftime("%Y-%m-%d"), **about, "parts": parts}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the result, such as a version")
    name = parser.parse_args().name
    found = result(name, rows=ROWS, steps=STEPS, rounds=ROUNDS)
    STEP_RESULTS.mkdir(parents=True, exist_ok=True)
    (STEP_RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    render()


if __name__ == "__main__":
    main()
