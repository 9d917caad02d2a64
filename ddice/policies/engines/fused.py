"""Decisions by one Triton kernel per phase of the networks, recorded as one CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ddice.policies.engines.decision import DecisionProgram, DiffusionProgram
from ddice.policies.engines.eager import EagerEngine, run_setup
from ddice.policies.engines.graph import GraphEngine
from ddice.policies.engines.layout import COMBINE, STORE, Layout, blocks, layout
from ddice.policies.engines.phases import phases
from ddice.policies.engines.program import NotCovered, Program

FusedDtype = Literal["float32", "tf32", "float16"]


@dataclass(frozen=True)
class FusedPlan:
    """The layouts of a decision's programs, None where the eager engine does it, with the
    kernel: made once for all runners.
    """

    kernel: Any
    generator: Layout | None
    q: Layout | None
    storage: torch.dtype
    precision: str


def fused_plan(decision: DecisionProgram, dtype: FusedDtype = "float32") -> FusedPlan:
    """dtype: of weights and stored values; "float16" adds up in float32, "tf32" rounds the factors
    of float32 products to its 10 bits.

    Raises NotCovered, naming what no kernel does, ImportError without triton.
    """
    generator, q = decision.generator, decision.q
    layouts = (
        _lay_out(generator.network, decision.observations, len(generator.times), dtype)
        if isinstance(generator, DiffusionProgram)
        else None,
        None if q is None else _lay_out(q, decision.observations, None, dtype),
    )
    try:
        from ddice.policies.engines import kernels
    except ImportError as error:
        raise ImportError(
            f"the engine 'fused' needs triton ({error}): pip install 'ddice[triton]'"
        ) from error
    used = {step for lay in layouts if lay is not None for step in lay.steps()}
    unknown = sorted(used - kernels.STEPS - {STORE, COMBINE})
    if unknown:
        raise NotCovered(
            f"not covered: the steps {', '.join(unknown)}: their operations were stated after "
            f"{kernels.__name__} was imported"
        )
    return FusedPlan(
        kernels.phase, *layouts, _storage(dtype), "tf32" if dtype == "tf32" else "ieee"
    )


def _storage(dtype: FusedDtype) -> torch.dtype:
    return torch.float16 if dtype == "float16" else torch.float32


def _lay_out(
    program: Program, observations: int, evaluations: int | None, dtype: FusedDtype
) -> Layout:
    found = phases(program, moves_x=evaluations is not None)
    device = next(
        term.weight.device for phase in found.phases for task in phase for term in task.terms
    )
    setup = run_setup(program, torch.zeros(1, observations, device=device, dtype=torch.float32))
    shapes = {step.output: tuple(setup[step.output].shape) for step in program.setup}
    return layout(found, program.sizes, shapes, evaluations, _storage(dtype), dtype == "tf32")


class FusedEngine(GraphEngine):
    """The graph engine on the decisions of a `FusedRunner`."""

    name: ClassVar[str] = "fused"


class Buffers(NamedTuple):
    """Of one program and number of candidates: stored values, the current x (N, A), noise and
    predictions (T + 1, N, A), the output (M, N, n).
    """

    values: Tensor
    x: Tensor
    history: Tensor
    out: Tensor


class FusedRunner(EagerEngine):
    """Runs the bodies of a decision's programs phase by phase; what is computed once per call is
    the eager engine's.
    """

    name: ClassVar[str] = "fused runner"

    def __init__(self, decision: DecisionProgram, plan: FusedPlan, *, rows_per_call: int):
        super().__init__(decision, rows_per_call=rows_per_call)
        self.plan = plan
        self._buffers: dict[tuple[int, int], Buffers] = {}

    def free(self) -> None:
        super().free()
        self._buffers.clear()

    def _generate(self, observations: Tensor, noise: Tensor) -> Tensor:
        generator, lay = self.decision.generator, self.plan.generator
        if lay is None:
            return super()._generate(observations, noise)
        assert isinstance(generator, DiffusionProgram)
        count = len(generator.times)
        buffers = self._buffer(lay, noise, count + 1)
        buffers.history[0] = noise.reshape(-1, noise.shape[-1])
        torch.mul(buffers.history[0], generator.matrix[0, 0], out=buffers.x)
        rows = self._rows(generator.network, lay, observations)
        for i in range(count):
            self._run(lay, buffers, rows, generator.matrix, i, noise.shape[1])
        return buffers.x.view(noise.shape)  # which the recording copies

    def _q_values(self, observations: Tensor, candidates: Tensor) -> Tensor:
        program, lay = self.decision.q, self.plan.q
        assert program is not None
        assert lay is not None
        buffers = self._buffer(lay, candidates, 0)
        buffers.x.copy_(candidates.reshape(buffers.x.shape))
        self._run(
            lay,
            buffers,
            self._rows(program, lay, observations),
            buffers.out,
            0,
            candidates.shape[1],
        )
        return buffers.out

    def _rows(self, program: Program, lay: Layout, observations: Tensor) -> Tensor:
        """The state's rows, one after the other."""
        setup = run_setup(program, observations)
        return (
            torch.cat([setup[name].reshape(-1) for name in lay.setup])
            if lay.setup
            else observations.new_zeros(1)
        )

    def _buffer(self, lay: Layout, points: Tensor, history: int) -> Buffers:
        rows, size = points.shape[0] * points.shape[1], points.shape[-1]
        key = id(lay), rows
        if key not in self._buffers:
            values = torch.empty(
                max(1, lay.columns * rows), dtype=self.plan.storage, device=points.device
            )
            out = points.new_empty(lay.members, rows, 1) if history == 0 else points.new_empty(1)
            self._buffers[key] = Buffers(
                values,
                points.new_empty(rows, size),
                points.new_empty(max(1, history), rows, size),
                out,
            )
        return self._buffers[key]

    def _run(
        self, lay: Layout, buffers: Buffers, rows: Tensor, matrix: Tensor, i: int, candidates: int
    ) -> None:
        values, x, history, out = buffers
        arrays = values, lay.weights, lay.constants, rows, x, history, matrix, out
        for phase, warps in lay.launches(len(x)):
            grid = (blocks(phase, len(x)),)
            self.plan.kernel[grid](
                *arrays,
                i,
                len(x),
                candidates,
                PHASE=phase,
                PRECISION=self.plan.precision,
                num_warps=warps,
            )
