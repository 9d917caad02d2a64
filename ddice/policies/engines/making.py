"""Which engine runs a policy."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field

from ddice.core.config import Config
from ddice.policies.engines.base import Engine, Procedure
from ddice.policies.engines.decision import DecisionProgram, decision_program
from ddice.policies.engines.eager import EagerEngine
from ddice.policies.engines.fused import FusedEngine, FusedRunner, fused_plan
from ddice.policies.engines.graph import CudaCapture, GraphEngine, MakeRunner
from ddice.policies.engines.onnx_engine import OnnxEngine
from ddice.policies.engines.program import NotCovered
from ddice.policies.engines.reference import ReferenceEngine

EngineName = Literal["auto", "reference", "eager", "onnx", "graph", "fused"]
EngineDtype = Literal["float32", "tf32", "float16"]
# By benchmarks/README.md. On CUDA nothing is measured yet, so that "auto" stays with the simplest.
FASTEST_FIRST: dict[str, tuple[EngineName, ...]] = {"cpu": ("onnx", "eager"), "cuda": ("eager",)}
ROWS_PER_CALL = {"cpu": 2**14, "cuda": 2**17}
CPU_BLOCK = 1024  # candidates of one call of an engine on a CPU: their values stay in the cache


class EngineSettings(Config):
    """What `Policy.compile` was asked for."""

    engine: EngineName = "auto"
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1)
    dtype: EngineDtype = "float32"
    rows_per_call: int | None = Field(
        None,
        ge=1,
        description=(
            "states x candidates of one call: bounds memory; by default as engine and device ask"
        ),
    )


REFERENCE = EngineSettings(engine="reference")


def make_engine(settings: EngineSettings, procedure: Procedure) -> Engine:
    """The engine that is asked for; "auto": the fastest that covers the policy and is installed,
    with a warning for each that does not.
    """
    device = next(procedure.sampler.parameters()).device
    rows = settings.rows_per_call or ROWS_PER_CALL["cpu" if device.type == "cpu" else "cuda"]
    reference = ReferenceEngine(procedure, rows_per_call=rows)
    if settings.dtype != "float32" and settings.engine != "fused":
        raise ValueError(
            f"engine {settings.engine!r} computes in float32, got dtype={settings.dtype!r}: "
            "engine='fused' offers it"
        )
    if settings.engine == "reference":
        return reference
    try:
        program = decision_program(procedure)
    except NotCovered as error:
        if settings.engine != "auto":
            raise
        warnings.warn(f"engine 'auto' is the reference here: {error}", stacklevel=4)
        return reference
    if settings.engine != "auto":
        return _engine(settings.engine, program, settings, device)
    for name in FASTEST_FIRST.get(device.type, ("eager",)):
        try:
            return _engine(name, program, settings, device)
        except (NotCovered, ImportError) as error:
            warnings.warn(f"engine 'auto' goes without {name!r}: {error}", stacklevel=4)
    return reference


def _engine(
    name: EngineName, program: DecisionProgram, settings: EngineSettings, device: torch.device
) -> Engine:
    """Raises NotCovered for a program that this engine cannot run, ImportError where its package
    is missing.
    """
    rows = settings.rows_per_call or (CPU_BLOCK if device.type == "cpu" else ROWS_PER_CALL["cuda"])
    if name == "onnx":
        if device.type != "cpu":
            raise NotCovered(
                f"the engine 'onnx' runs on the CPU and this policy is on {device}: "
                "policy.to('cpu') first, or engine='eager'"
            )
        return OnnxEngine(program, batch_sizes=settings.batch_sizes, rows_per_call=rows)
    if name == "eager":
        return EagerEngine(program, rows_per_call=rows)
    if device.type != "cuda":
        raise NotCovered(
            f"engine {name!r} needs a CUDA device; this policy is on {device}: "
            "policy.to('cuda') first, or engine='eager'"
        )
    with torch.cuda.device(device):
        runner: MakeRunner = partial(EagerEngine, program, rows_per_call=rows)
        if name == "fused":
            runner = partial(
                FusedRunner, program, fused_plan(program, settings.dtype), rows_per_call=rows
            )
        kind = FusedEngine if name == "fused" else GraphEngine
        return kind(
            runner,
            CudaCapture(),
            batch_sizes=settings.batch_sizes,
            rows_per_call=rows,
            device=device,
        )
