"""Time of whole decisions: observation -> K guided candidates -> selection by Q -> action. `make
bench` runs it.

Every round times the plain sampler of `plain_eager.py` (15 evaluations, whatever the engine takes)
and then the engine, each after a call that does not count, so that neither finds the other's data
in the caches. Compare ratios, of the same moment of the same machine: absolute times on shared
machines say little.
"""

from __future__ import annotations

import gc
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.decisions import ACTIONS, OBSERVATIONS, Case, decision_row, make_policy
from benchmarks.machine import synchronized
from benchmarks.memory import measured
from benchmarks.plain_eager import PlainEager
from ddice.policies.policy import Policy

CPU = [
    (networks, solver, engine, batch, candidates, "float32", "cpu")
    for networks in ("published", "default")
    for solver, engine in (
        *((s, e) for e in ("reference", "eager", "onnx") for s in ("2S-15", "2M-8")),
        ("2M-5", "onnx"),
    )
    for batch, candidates in ((1, 4), (10, 4), (1, 32), (50, 32))
]
CUDA = [
    ("published", solver, engine, batch, candidates, dtype, "cuda")
    for solver in ("2S-15", "2M-8")
    for engine, dtype in (
        ("reference", "float32"),
        ("eager", "float32"),
        ("graph", "float32"),
        ("fused", "float32"),
        ("fused", "float16"),
    )
    for batch, candidates in ((1, 4), (1, 32), (50, 32), (4096, 32))
]
WARM_UPS = 2
ROUNDS = {1: 40, 10: 20, 50: 7, 4096: 5}


@cache
def plain(networks: str, candidates: int, device: str) -> PlainEager:
    return PlainEager(make_policy(networks, "2S-15", candidates, device))


@cache
def policy(networks: str, solver: str, candidates: int, device: str) -> Policy:
    return make_policy(networks, solver, candidates, device)


@pytest.mark.parametrize(
    ("networks", "solver", "engine", "batch", "candidates", "dtype", "device"), [*CPU, *CUDA]
)
def test_decisions(
    benchmark: Any,
    networks: str,
    solver: str,
    engine: Any,
    batch: int,
    candidates: int,
    dtype: Any,
    device: str,
) -> None:
    """One call of `policy.decide` for `batch` states, transfers included."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    if engine == "fused":
        pytest.importorskip("triton")
    torch.set_num_threads(1)
    gc.collect()  # the engines of other measurements
    torch.cuda.empty_cache()
    base = policy(networks, solver, candidates, device)
    started = time.perf_counter()
    compiled = base.compile(engine, batch_sizes=(batch,), dtype=dtype)
    source = torch.Generator().manual_seed(0)
    observations, noise = (
        torch.randn(*shape, generator=source)
        for shape in ((batch, OBSERVATIONS), (batch, candidates, ACTIONS))
    )
    baseline = plain(networks, candidates, device)

    def act() -> None:
        compiled.decide(observations, noise.to(device)).actions.cpu()

    act()
    cold, times = time.perf_counter() - started, list[float]()
    reference = synchronized(lambda: baseline(observations, noise), device)

    def before_each_round() -> None:
        reference()
        begun = time.perf_counter()
        reference()
        times.append(time.perf_counter() - begun)
        act()

    benchmark.group = f"{device}, {networks} networks, {batch} states x {candidates} candidates"
    benchmark.pedantic(
        synchronized(act, device),
        setup=before_each_round,
        rounds=ROUNDS[batch],
        warmup_rounds=WARM_UPS,
    )
    case = Case(networks, solver, engine, batch, candidates, dtype, device)
    row = decision_row(
        case,
        seconds=benchmark.stats.stats.data,
        plain_seconds=times[WARM_UPS:],
        cold_start=cold,
        peak_memory=measured(networks, solver, engine, batch, candidates, dtype, device),
    )
    benchmark.extra_info.update(row)
