"""Time of one training step of every part, and of drawing its batch. `make bench` runs it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent.parent))

import ddice
from benchmarks.machine import description, synchronized
from ddice.data import Transitions
from ddice.parts.stage import alone
from ddice.runs.presets import PRESETS

ROWS, STATE, ACTION = 20_000, 11, 3  # Hopper's sizes
ROUNDS = {"default": 30, "official": 5}
DEVICES = ("cpu", "cuda")


@pytest.fixture(scope="module")
def data() -> Transitions:
    rng = np.random.default_rng(0)
    ends = np.arange(1, ROWS + 1) % 1000 == 0
    states = rng.normal(size=(ROWS + 1, STATE)).astype(np.float32)
    arrays = {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": rng.uniform(-1, 1, size=(ROWS, ACTION)).astype(np.float32),
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "terminations": np.zeros(ROWS, bool),
        "truncations": ends,
    }
    return ddice.load_dataset(arrays, action_bounds=(-1.0, 1.0))


def needs(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    torch.set_num_threads(1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stage", ["prior", "backend", "extractor"])
@pytest.mark.parametrize("preset", ROUNDS)
def test_steps(benchmark: Any, preset: str, stage: str, device: str, data: Transitions) -> None:
    """Batch, loss, gradients and optimiser of one step, with the preset's networks and batch
    sizes.
    """
    needs(device)
    recipe, table = PRESETS[preset], data.to(device)
    prior = recipe.prior.build(data.spec, 0).to(device)
    backend: Any = recipe.backend.build(data.spec, 0).to(device)
    backend.prepare(table)
    extractor = recipe.extractor.build(data.spec, 0, prior).to(device)
    last = 10**9
    stages = {
        "prior": alone(prior, steps=last),
        "backend": alone(backend, steps=last),
        "extractor": extractor.stage(backend, steps=last),
    }
    measured = stages[stage]
    for part in measured.parts.values():
        part.until(last)
    measured = measured.over(table)
    steps = iter(range(last))

    def step() -> None:
        measured.step(table, next(steps))

    benchmark.group = f"{device}, {stage}"
    benchmark.extra_info.update(
        {**description(device), "preset": preset, "stage": stage, "batch": measured.batch_size}
    )
    benchmark.pedantic(synchronized(step, device), rounds=ROUNDS[preset], warmup_rounds=2)


@pytest.mark.parametrize("batch", [512, 4096])
def test_batches(benchmark: Any, batch: int, data: Transitions) -> None:
    """`data.sample` beside a DataLoader that collates row by row, timed in turn;
    `ratio_to_loader` is how many times faster it is.
    """
    needs("cpu")
    full = data.full()
    columns = (
        full.observations,
        full.actions,
        full.rewards,
        full.next_observations,
        full.terminations,
    )
    loader = iter(DataLoader(TensorDataset(*columns), batch_size=batch, shuffle=True))
    times, steps = [], iter(range(10**9))

    def before_each_round() -> None:
        nonlocal loader
        started = time.perf_counter()
        try:
            next(loader)
        except StopIteration:
            loader = iter(DataLoader(TensorDataset(*columns), batch_size=batch, shuffle=True))
            return
        times.append(time.perf_counter() - started)

    benchmark.group = f"cpu, batches of {batch}"
    benchmark.pedantic(
        lambda: data.sample(batch, seed=0, step=next(steps)),
        setup=before_each_round,
        rounds=40,
        warmup_rounds=2,
    )
    ratio = float(np.median(times) / np.median(benchmark.stats.stats.data))
    benchmark.extra_info.update({**description("cpu"), "batch": batch, "ratio_to_loader": ratio})
