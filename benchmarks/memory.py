"""How much memory an engine takes: compiling it and one decision, in a process of its own, at the
peak and beyond what the policy itself takes.

python benchmarks/memory.py --engine onnx --batch 50 --candidates 32
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.decisions import ACTIONS, NETWORKS, OBSERVATIONS, SOLVERS, make_policy
from benchmarks.machine import peak_memory

ENGINES = ("reference", "eager", "onnx", "graph", "fused")
IMPORTED = {
    "onnx": ("onnx", "onnxruntime"),
    "fused": ("triton",),
}  # by engines: libraries are not counted


def measured(
    networks: str, solver: str, engine: str, batch: int, candidates: int, dtype: str, device: str
) -> float | None:
    """MiB, found by this script in another process; None where the system does not tell."""
    options = {
        "networks": networks,
        "solver": solver,
        "engine": engine,
        "batch": batch,
        "candidates": candidates,
        "dtype": dtype,
        "device": device,
    }
    command = [sys.executable, __file__, *(f"--{name}={value}" for name, value in options.items())]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    return None if printed == "unknown" else float(printed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", choices=NETWORKS, default="published")
    parser.add_argument("--solver", choices=SOLVERS, default="2S-15")
    parser.add_argument("--engine", choices=ENGINES, default="eager")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "tf32", "float16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in IMPORTED.get(options.engine, ()):
        importlib.import_module(name)
    policy = make_policy(options.networks, options.solver, options.candidates, options.device)
    observations = torch.randn(options.batch, OBSERVATIONS, device=options.device)
    noise = torch.randn(options.batch, options.candidates, ACTIONS, device=options.device)
    torch.zeros(8, 8) @ torch.zeros(
        8, 8
    )  # the library of products takes its own memory at its first call

    def compile_and_act() -> None:
        policy.compile(options.engine, batch_sizes=(options.batch,), dtype=options.dtype).decide(
            observations, noise
        )

    found = peak_memory(compile_and_act, options.device)
    print("unknown" if found is None else f"{found:.1f} MiB")


if __name__ == "__main__":
    main()
