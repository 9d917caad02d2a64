"""How much faster worker processes do a grid of equal cells than one process, and whether the
numbers are the same.

python benchmarks/grid_speed.py        # on a quiet machine; one thread for the serial run too
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ddice.runs.comparison import Comparison, Result, compare


def data(path: Path, rows: int = 20_000) -> Path:
    """Random rows for Pendulum-v1, in episodes of 200."""
    draw = np.random.default_rng(0)
    angle = draw.uniform(-np.pi, np.pi, rows)
    np.savez(
        path,
        observations=np.stack([np.cos(angle), np.sin(angle), draw.normal(size=rows)], 1),
        actions=draw.uniform(-2, 2, (rows, 1)),
        rewards=draw.normal(size=rows),
        terminations=np.zeros(rows, bool),
        truncations=np.arange(rows) % 200 == 199,
    )
    return path


def grid(source: Path, steps: int, executor: dict[str, object]) -> Comparison:
    """12 cells that share nothing: the behaviour policy of twelve seeds would share no prior, and
    each seed has one policy beside it.
    """
    return Comparison.model_validate(
        {
            "recipe": {
                "data": {"source": str(source), "env": "Pendulum-v1"},
                "device": "cpu",
                "steps": {"prior": steps, "backend": steps, "extractor": steps},
                "evaluation": {"episodes": 10},
            },
            "backends": ["piecewise_f"],
            "extractors": ["weighted_bc"],
            "seeds": list(range(6)),
            "executor": executor,
        }
    )


def timed(comparison: Comparison, folder: Path) -> tuple[float, list[Result]]:
    """Seconds of a comparison with an empty cache of its own."""
    os.environ["DDICE_CACHE"] = str(folder / "cache")
    started = time.perf_counter()
    results = compare(comparison, folder / "run", progress=False, say=lambda text: None)
    return time.perf_counter() - started, results


def main(steps: int, workers: int) -> float:
    """The quotient of the two times. Raises AssertionError where the numbers differ."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = data(folder / "data.npz")
        one, expected = timed(grid(source, steps, {"kind": "serial"}), folder / "serial")
        executor = {"kind": "process", "workers": workers}
        many, found = timed(grid(source, steps, executor), folder / "process")
    for first, second in zip(expected, found, strict=True):
        assert first.evaluation.returns == second.evaluation.returns
    print(f"serial {one:.1f} s, {workers} workers {many:.1f} s: {one / many:.2f} times as fast")
    return one / many


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000, help="of each training")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    main(options.steps, options.workers)
