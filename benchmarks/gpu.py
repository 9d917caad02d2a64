"""What an NVIDIA GPU can tell of this package, from one call of at most eight minutes (`make gpu`).

    python benchmarks/gpu.py                        # on random numbers of Hopper's sizes
    python benchmarks/gpu.py --data maze.npz        # trains the recipe on a dataset
    python benchmarks/gpu.py --config recipe.json   # trains that recipe
    python benchmarks/gpu.py --only recipe --limit recipe=3600   # goes on with its training
    python benchmarks/gpu.py --rehearse             # small sizes on the CPU

Every stage is a process of its own with a limit of its own, and writes each number into
NAME.jsonl as soon as it is there: what fails, hangs or is stopped costs nothing of the others.
Everything lies in benchmarks/results/gpu/DEVICE, rendered as tables.md, which render_speed.py puts
into benchmarks/README.md. It needs torch, triton and what ddice imports: no environment, no plots;
the stage "tests" needs pytest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.gpu_stages import FULL, SMALL, STAGES, NeedsCuda, Options
from benchmarks.machine import description
from benchmarks.render_gpu import NEEDS_CUDA, OUTCOMES, TABLES, render
from ddice.core.storage import append_line

GRACE = 20  # seconds from the request to stop until a process is killed: a checkpoint takes one


def run_stage(
    name: str, command: list[str], folder: Path, seconds: float, grace: float = GRACE
) -> dict[str, Any]:
    """Run a command for so many seconds at most, into NAME.log; how it ended."""
    log, started = folder / f"{name}.log", time.perf_counter()
    # Unbuffered, so that what it said last stands last, an error behind all that it printed.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        # A group of its own, so that nothing that it has started outlives it.
        process = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, env=environment
        )
        try:
            code = process.wait(seconds)
            outcome = OUTCOMES.get(code, "failed")
        except subprocess.TimeoutExpired:
            outcome = "out of time"
            os.killpg(process.pid, signal.SIGTERM)  # training saves a checkpoint
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
    found = {"stage": name, "outcome": outcome, "seconds": time.perf_counter() - started}
    return found | ({"said": last[0][:200]} if outcome == "failed" and last else {})


def work(name: str, options: Options) -> int:
    """One stage, in this process."""
    torch.set_num_threads(1)
    path = options.folder / f"{name}.jsonl"
    if name != "recipe":  # whose training goes on
        path.unlink(missing_ok=True)

    def say(row: Mapping[str, Any]) -> None:
        rounded = {
            key: float(f"{value:.4g}") if isinstance(value, float) else value
            for key, value in row.items()
        }
        append_line(path, json.dumps(rounded))

    try:
        STAGES[name][1](options, say)
    except NeedsCuda as error:
        print(f"not rehearsed: {error}")
        return NEEDS_CUDA
    return 0


def own_arguments(options: argparse.Namespace) -> Iterator[str]:
    """Those that every stage is to know."""
    if options.rehearse:
        yield "--rehearse"
    for name in ("data", "config"):
        if (path := getattr(options, name)) is not None:
            yield f"--{name}={path.resolve()}"


def limit(text: str) -> tuple[str, float]:
    """NAME=SECONDS."""
    name, _, seconds = text.partition("=")
    if name not in STAGES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(STAGES)}, got {name!r}")
    return name, float(seconds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--data", type=Path, help=".npz that the recipe is trained on")
    parser.add_argument("--config", type=Path, help="recipe, as JSON")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--limit", type=limit, nargs="+", default=[], metavar="NAME=SECONDS")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    return parser.parse_args()


def default_folder(device: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", description(device)["machine"].lower()).strip("-")
    return Path(__file__).parent / "results" / "gpu" / name


def main() -> int:
    options = arguments()
    sizes = SMALL if options.rehearse else FULL
    if sizes.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: needs a CUDA device, and PyTorch finds none: it takes an NVIDIA GPU and the "
            "CUDA build of PyTorch. --rehearse tries it on the CPU",
            file=sys.stderr,
        )
        return 1
    if options.out is None and options.rehearse:
        options.out = Path(tempfile.mkdtemp(prefix="ddice-rehearsal-"))
    folder: Path = (options.out or default_folder(sizes.device)).resolve()
    if options.stage is not None:
        return work(options.stage, Options(sizes, folder, options.data, options.config))
    # Else a stage, in a group of its own, would outlive the call that is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n!*.jsonl\n!machine.json\n!tables.md\n")
    about = description(sizes.device) | {"measured": time.strftime("%Y-%m-%d")}
    (folder / "machine.json").write_text(json.dumps(about, indent=1) + "\n")
    limits = dict(options.limit)
    for name in options.only:
        command = [sys.executable, __file__, "--stage", name, "--out", str(folder)]
        seconds = limits.get(name, STAGES[name][0])
        found = run_stage(name, [*command, *own_arguments(options)], folder, seconds)
        append_line(
            folder / "stages.jsonl", json.dumps(found | {"seconds": round(found["seconds"], 1)})
        )
        print(f"{name}: {found['outcome']} after {found['seconds']:.0f} s", flush=True)
        (folder / TABLES).write_text(render(folder))
    print(f"written: {folder / TABLES}; python benchmarks/render_speed.py puts it into the page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
