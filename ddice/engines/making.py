"""Which engine runs a policy."""

from __future__ import annotations

import warnings
from typing import Literal

from pydantic import Field

from ddice.config import Config
from ddice.engines.base import Engine
from ddice.engines.eager import EagerEngine
from ddice.engines.onnx_engine import OnnxEngine
from ddice.engines.program import NotCovered, decision
from ddice.engines.reference import QCallable, ReferenceEngine
from ddice.samplers import Sampler, Selection

EngineName = Literal["auto", "reference", "eager", "onnx"]
EngineDtype = Literal["float32"]
FASTEST_FIRST: dict[str, tuple[EngineName, ...]] = {"cpu": ("eager",), "cuda": ("eager",)}
ROWS_PER_CALL = {"cpu": 2**14, "cuda": 2**17}
CPU_BLOCK = 512  # candidates of one call of the eager engine on a CPU: their values stay in the cache


class EngineSettings(Config):
    """What `Policy.compile` was asked for."""

    engine: EngineName = "auto"
    batch_sizes: tuple[int, ...] = Field((1,), min_length=1)
    dtype: EngineDtype = "float32"
    rows_per_call: int | None = Field(None, ge=1, description="states x candidates of one call: bounds memory; by default as engine and device ask")


REFERENCE = EngineSettings(engine="reference")


def make_engine(
    settings: EngineSettings, sampler: Sampler, q: QCallable | None, *, candidates: int, selection: Selection, clip_before_scoring: bool
) -> Engine:
    """The engine that is asked for; "auto": the fastest that covers the policy, with a warning for each that does not."""
    device = next(sampler.parameters()).device.type
    rows = settings.rows_per_call or ROWS_PER_CALL.get(device, ROWS_PER_CALL["cpu"])
    reference = ReferenceEngine(sampler, q, selection=selection, clip_before_scoring=clip_before_scoring, rows_per_call=rows)
    if settings.engine == "reference":
        return reference
    names = FASTEST_FIRST.get(device, ("eager",)) if settings.engine == "auto" else (settings.engine,)
    for name in names:
        try:
            program = decision(sampler, q, candidates=candidates, selection=selection, clip_before_scoring=clip_before_scoring)
            if name == "onnx":
                return OnnxEngine(program, batch_sizes=settings.batch_sizes, rows_per_call=settings.rows_per_call or CPU_BLOCK)
            return EagerEngine(program, rows_per_call=settings.rows_per_call or (CPU_BLOCK if device == "cpu" else rows))
        except NotCovered as error:
            if settings.engine != "auto":
                raise
            warnings.warn(f"engine {name!r}: {error}", stacklevel=2)
    return reference
