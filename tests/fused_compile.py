"""Compile every phase at the published sizes for compute capability 9.0, without a GPU: shared memory, registers and spills, a JSON line each."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ddice.engines import kernels
from ddice.engines.fused import FusedDtype, fused_plan
from ddice.engines.layout import Tree
from ddice.engines.program import decision

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.decisions import make_policy

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = ("values", "weights", "constants", "setup", "x", "history", "matrix", "out")
NUMBERS = ("i", "n", "k")
ASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


def built(phase: Tree, dtype: FusedDtype, precision: str) -> dict[str, Any]:
    stored = "*fp16" if dtype == "float16" else "*fp32"
    signature = {name: stored if name in ("values", "weights") else "*fp32" for name in POINTERS} | dict.fromkeys(NUMBERS, "i32")
    signature |= {"PHASE": "constexpr", "PRECISION": "constexpr"}
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(POINTERS))}
    source = ASTSource(kernels.phase, signature, {"PHASE": phase, "PRECISION": precision}, aligned)
    compiled = triton.compile(source, target=TARGET)
    return {"shared": compiled.metadata.shared, **assembled(compiled.asm["ptx"])}


def assembled(ptx: str) -> dict[str, int]:
    """What the assembler says about a kernel."""
    (architecture,) = re.findall(r"^\.target (sm_\w+)", ptx, flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [str(ASSEMBLER), "-v", "--gpu-name", architecture, str(file), "-o", str(file.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = sum(int(count) for count in re.findall(r"(\d+) bytes spill", said))
    return {"spills": spills, "registers": max(int(count) for count in re.findall(r"Used (\d+) registers", said))}


if __name__ == "__main__":
    policy = make_policy("published", "2S-15", 32)
    program = decision(policy.sampler, policy.q, candidates=32, selection=policy.config.selection, clip_before_scoring=True)
    wanted: tuple[tuple[FusedDtype, str], ...] = (("float32", "few"), ("float16", "few"), ("float16", "many"), ("float32", "many"))
    for dtype, tiles in wanted:
        plan = fused_plan(program, dtype)
        for part, layout in (("sampler", plan.generator), ("q", plan.q)):
            for index, phase in enumerate(getattr(layout, tiles)):
                print(json.dumps([f"{part} {index}", dtype, tiles, built(phase, dtype, plan.precision)]), flush=True)
