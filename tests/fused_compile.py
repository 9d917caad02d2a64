"""Compile every phase of the published and the default networks for compute capability 9.0,
without a GPU: what it takes, a JSON line each.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ddice.policies.engines import kernels
from ddice.policies.engines.decision import decision_program
from ddice.policies.engines.fused import FusedDtype, fused_plan
from ddice.policies.engines.layout import Launch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.decisions import make_policy

TARGET = GPUTarget("cuda", 90, 32)
POINTERS = ("values", "weights", "constants", "setup", "x", "history", "matrix", "out")
NUMBERS = ("i", "n", "k")
ASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


def built(launch: Launch, dtype: FusedDtype, precision: str) -> dict[str, Any]:
    stored = "*fp16" if dtype == "float16" else "*fp32"
    signature = {
        name: stored if name in ("values", "weights") else "*fp32" for name in POINTERS
    } | dict.fromkeys(NUMBERS, "i32")
    signature |= {"PHASE": "constexpr", "PRECISION": "constexpr"}
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(POINTERS))}
    source = ASTSource(
        kernels.phase, signature, {"PHASE": launch.phase, "PRECISION": precision}, aligned
    )
    compiled = triton.compile(source, target=TARGET, options={"num_warps": launch.warps})
    drops_nan = len(re.findall(r"\b(?:max|min)\.f32", compiled.asm["ptx"]))  # max.NaN.f32 keeps it
    return {
        "shared": compiled.metadata.shared,
        "drops NaN": drops_nan,
        **assembled(compiled.asm["ptx"]),
    }


def assembled(ptx: str) -> dict[str, int]:
    """What the assembler says about a kernel."""
    (architecture,) = re.findall(r"^\.target (sm_\w+)", ptx, flags=re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [
            str(ASSEMBLER),
            "-v",
            "--gpu-name",
            architecture,
            str(file),
            "-o",
            str(file.with_suffix(".cubin")),
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = sum(int(count) for count in re.findall(r"(\d+) bytes spill", said))
    return {
        "spills": spills,
        "registers": max(int(count) for count in re.findall(r"Used (\d+) registers", said)),
    }


if __name__ == "__main__":
    for networks, dtype in itertools.product(("published", "default"), get_args(FusedDtype)):
        policy = make_policy(networks, "2S-15", 32)
        program = decision_program(policy.procedure)
        plan = fused_plan(program, dtype)
        for tiles, (part, layout) in itertools.product(
            ("few", "many"), (("sampler", plan.generator), ("q", plan.q))
        ):
            for index, launch in enumerate(getattr(layout, tiles)):
                print(
                    json.dumps(
                        [
                            f"{networks} {part} {index}",
                            dtype,
                            tiles,
                            built(launch, dtype, plan.precision),
                        ]
                    ),
                    flush=True,
                )
