"""The stages of `benchmarks/gpu.py`: each says what it finds as soon as it is there, row by row."""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from benchmarks import gpu_unknowns
from benchmarks.decisions import ACTIONS, OBSERVATIONS, Case, decision_row, make_policy
from benchmarks.machine import peak_memory, synchronized
from benchmarks.plain_eager import PlainEager
from benchmarks.steps import made_up
from ddice.core.config import merge
from ddice.data import Transitions
from ddice.parts.stage import Stage, alone
from ddice.runs.presets import PRESETS
from ddice.runs.recipe import Recipe
from ddice.runs.training import train

ROOT = Path(__file__).parent.parent
Say = Callable[[Mapping[str, Any]], None]
WARM_UPS = 3
POINTS = 20  # of the curve of each part of the recipe
LOG_EVERY = 100  # steps from one look at the metrics to the next
PYTEST = re.compile(r"(\S+\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")


@dataclass(frozen=True, eq=False)
class Sizes:
    """How much is measured, and where."""

    device: str
    networks: str
    solvers: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]  # states, candidates
    rounds: int  # of decisions
    presets: tuple[str, ...]
    rows: int  # of the made-up dataset
    steps: int  # that are timed
    compiler: str  # backend of torch.compile
    recipe: dict[str, Any]  # changes of the default one; none: the published


FULL = Sizes(
    device="cuda",
    networks="published",
    solvers=("2S-15", "2M-8"),
    shapes=((1, 4), (1, 32), (50, 32), (4096, 32)),
    rounds=11,
    presets=("default", "official"),
    rows=200_000,
    steps=200,
    compiler="inductor",
    recipe={},
)
# Dynamo traces with the backend "eager" as with any other; what only a compiler does stays out.
SMALL = Sizes(
    device="cpu",
    networks="default",
    solvers=("2M-5",),
    shapes=((1, 4),),
    rounds=2,
    presets=("default",),
    rows=2000,
    steps=2,
    compiler="eager",
    recipe={"steps": {"prior": 200, "backend": 200, "extractor": 100}},
)


@dataclass(frozen=True)
class Options:
    sizes: Sizes
    folder: Path
    data: Path | None
    config: Path | None


class NeedsCuda(RuntimeError):
    """A stage that cannot be rehearsed on a CPU."""


def tests(options: Options, say: Say) -> None:
    """The tests that need CUDA, each as soon as it is over."""
    # -o: the package's own options deselect them, and ask for plugins.
    how = ["-v", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider", "--tb=short"]
    command = [sys.executable, "-m", "pytest", *how, "tests/test_gpu.py"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)  # into the log, with what failed and why
            if match := PYTEST.match(line):
                say({"test": match[1], "found": match[2].lower()})
    if process.returncode:
        raise RuntimeError(f"pytest ended with {process.returncode}: see the log")


def unknowns(options: Options, say: Say) -> None:
    """What the model of costs in notes.md takes for granted."""
    if options.sizes.device != "cuda":
        raise NeedsCuda("its kernels are written in CUDA C")
    for name, number, unit in gpu_unknowns.numbers():
        say({"name": name, "number": number, "unit": unit})


def decisions(*engines: tuple[str, str]) -> Callable[[Options, Say], None]:
    """Whole decisions by these engines and types of numbers, in turn with the plain sampler."""

    def stage(options: Options, say: Say) -> None:
        sizes = options.sizes
        for engine, dtype in engines:
            for solver, (batch, candidates) in itertools.product(sizes.solvers, sizes.shapes):
                case = Case(sizes.networks, solver, engine, batch, candidates, dtype, sizes.device)
                say(attempt(case._asdict(), partial(decide, case, sizes.rounds)))

    return stage


def decide(case: Case, rounds: int) -> dict[str, Any]:
    """One case, transfers included."""
    device, shape = case.device, (case.batch, case.candidates, ACTIONS)
    plain = PlainEager(make_policy(case.networks, "2S-15", case.candidates, device))
    base = make_policy(case.networks, case.solver, case.candidates, device)
    observations, noise = torch.randn(case.batch, OBSERVATIONS), torch.randn(shape)
    compiled = None

    def act() -> None:
        assert compiled is not None
        compiled.decide(observations, noise.to(device)).actions.cpu()

    def compile_and_act() -> None:
        nonlocal compiled
        compiled = base.compile(case.engine, batch_sizes=(case.batch,), dtype=case.dtype)  # type: ignore[arg-type]
        act()

    started = time.perf_counter()
    memory = peak_memory(compile_and_act, device)
    cold_start = time.perf_counter() - started
    calls = [lambda: plain(observations, noise).cpu(), act]
    times: list[list[float]] = [[], []]
    for index in range(WARM_UPS + rounds):
        for call, found in zip(calls, times, strict=True):
            seconds = clocked(call, device)
            if index >= WARM_UPS:
                found.append(seconds)
    plain_seconds, own_seconds = times
    return decision_row(
        case,
        seconds=own_seconds,
        plain_seconds=plain_seconds,
        cold_start=cold_start,
        peak_memory=memory,
    )


def steps(compiled: bool) -> Callable[[Options, Say], None]:
    """Steps a second of every part of the presets, as they are or by torch.compile."""

    def stage(options: Options, say: Say) -> None:
        sizes = options.sizes
        for preset, part in itertools.product(sizes.presets, ("prior", "backend", "extractor")):
            names = {"preset": preset, "part": part, "mode": "compiled" if compiled else "eager"}
            say(attempt(names, partial(training_steps, sizes, preset, part, compiled)))

    return stage


def training_steps(sizes: Sizes, preset: str, name: str, compiled: bool) -> dict[str, Any]:
    """Steps of one part; compiled: against the eager part too, which must come to the same."""
    data, frames = dataset(sizes), torch._dynamo.utils.counters["frames"]
    stage = training_stage(preset, name, data, sizes)
    update = stage.update
    if compiled:
        # What the compiler cannot take stays as it is; how much that is, is said below.
        torch._dynamo.config.suppress_errors = True
        torch._dynamo.reset()
        frames.clear()
        update = torch.compile(update, backend=sizes.compiler)
    numbers = itertools.count()

    def take(count: int) -> None:
        for _ in range(count):
            number = next(numbers)
            update(data.sample(stage.batch_size, seed=stage.seed, step=number), number)

    found: dict[str, Any] = {"batch": stage.batch_size}
    found["cold_start_s"] = clocked(partial(take, 1), sizes.device)
    found["peak_memory_mib"] = peak_memory(partial(take, WARM_UPS), sizes.device)
    if compiled:
        # Of so few steps, because rounding grows from step to step.
        eager = training_stage(preset, name, data, sizes)
        for number in range(1 + WARM_UPS):
            eager.step(data, number)
        found["largest_difference"] = largest_difference(stage, eager)
        found["frames"] = f"{frames['ok']} of {frames['total']}"
    seconds = clocked(partial(take, sizes.steps), sizes.device) / sizes.steps
    return found | {"steps_per_second": 1 / seconds, "ms": 1e3 * seconds}


@cache
def dataset(sizes: Sizes) -> Transitions:
    return made_up(sizes.rows).to(sizes.device)


def training_stage(preset: str, name: str, data: Transitions, sizes: Sizes) -> Stage:
    """The stage of one part of a preset on these data, ready for its steps."""
    recipe, last = PRESETS[preset], 10**6
    prior = recipe.prior.build(data.spec, 0).to(sizes.device)
    backend: Any = recipe.backend.build(data.spec, 0).to(sizes.device)
    backend.prepare(data)
    extractor = recipe.extractor.build(data.spec, 0, prior).to(sizes.device)
    found = {
        "prior": alone(prior, steps=last),
        "backend": alone(backend, steps=last),
        "extractor": extractor.stage(backend, steps=last),
    }[name]
    for part in found.parts.values():
        part.until(last)
    return found.over(data)


def largest_difference(one: Stage, other: Stage) -> float:
    """Of all numbers of two stages that should be alike."""
    theirs = other.state()
    return max(
        float((value - theirs[name]).abs().max())
        for name, value in one.state().items()
        if value.is_floating_point() and value.numel()
    )


def recipe(options: Options, say: Say) -> None:
    """One recipe with what its metrics were as it went: the published one, unless another is
    given. Called again with the same folder, it goes on where it was stopped.
    """
    os.environ["DDICE_CACHE"] = str(options.folder / "cache")
    model = chosen_recipe(options)
    given = options.data is not None or options.config is not None
    data = model.data.load() if given else made_up(options.sizes.rows)
    started = time.perf_counter()

    def hear(part: str, done: int, of: int, metrics: Mapping[str, Any]) -> None:
        every = max(LOG_EVERY, of // POINTS // LOG_EVERY * LOG_EVERY)
        if done % every == 0 or done == of:
            numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
            seconds = time.perf_counter() - started
            say({"part": part, "step": done, "of": of, "seconds": seconds, **numbers})

    run = options.folder / "run"
    _, scores = train(model, run, data=data, progress=False, listeners=(hear,))
    if scores is not None:
        say({"part": "evaluation", "seconds": time.perf_counter() - started, "score": scores.mean})


def chosen_recipe(options: Options) -> Recipe:
    """What --config and --data ask for. Without a configuration nothing is played, because that
    takes an environment.
    """
    fields = PRESETS["official"].model_dump(mode="json")
    if options.sizes.recipe:
        fields = merge(PRESETS["default"].model_dump(mode="json"), options.sizes.recipe)
    fields = merge(fields, {"data": {"action_bounds": "data"}, "evaluation": {"episodes": 0}})
    if options.config is not None:
        fields = json.loads(options.config.read_text())
    changes: dict[str, Any] = {"device": options.sizes.device}
    if options.data is not None:
        changes["data"] = {**fields.get("data", {}), "source": str(options.data)}
    return Recipe.model_validate(fields | changes)


def clocked(call: Callable[[], object], device: str) -> float:
    """Seconds of a call, and of what it leaves to the device."""
    started = time.perf_counter()
    synchronized(call, device)()
    return time.perf_counter() - started


def attempt(names: dict[str, Any], call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a call finds, under its names; where it fails, why."""
    gc.collect()  # what was measured before
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        return names | call()
    except Exception as error:
        print(f"{names}: {type(error).__name__}: {error}", flush=True)
        return names | {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:200]}


STAGES: dict[str, tuple[int, Callable[[Options, Say], None]]] = {
    # Seconds, 480 in all: what a stage is not done with by then is left out.
    "tests": (90, tests),
    "unknowns": (30, unknowns),
    "eager": (45, decisions(("reference", "float32"), ("eager", "float32"))),
    "graph": (30, decisions(("graph", "float32"))),
    "fused": (75, decisions(("fused", "float32"), ("fused", "tf32"), ("fused", "float16"))),
    "steps": (45, steps(compiled=False)),
    "compiled": (60, steps(compiled=True)),
    "recipe": (105, recipe),
}
