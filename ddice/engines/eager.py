"""Plain tensors: state and time terms once per call, the guidance gradient by hand, the solver as one matrix, no autograd and no host round trip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ddice.engines.base import Choice, Engine
from ddice.engines.program import Decision, GaussianProgram, Program, evaluate
from ddice.samplers.reference import gaussian_mean_and_log_std


class EagerEngine(Engine):
    """Runs a decision's program with one tensor operation per instruction."""

    name: ClassVar[str] = "eager"

    def __init__(self, decision: Decision, *, rows_per_call: int):
        super().__init__(rows_per_call)
        self.decision = decision

    def run(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
        raw = self._generate(observations, noise)
        candidates = raw.clamp(-1, 1) if self.decision.clip_before_scoring else raw
        index = self._select(observations, candidates, uniform)
        actions = candidates[torch.arange(len(candidates), device=candidates.device), index].clamp(-1, 1)
        return Choice(actions, raw, index)

    def _generate(self, observations: Tensor, noise: Tensor) -> Tensor:
        generator = self.decision.generator
        setup = run_setup(generator.network, observations)
        if isinstance(generator, GaussianProgram):
            mean, log_std = gaussian_mean_and_log_std(setup[generator.network.output][0])
            return mean[:, None] + log_std.exp()[:, None] * noise
        history = noise.new_empty(len(generator.times) + 1, *noise.shape)
        history[0] = noise
        flat = history.view(len(history), -1)
        for i in range(len(generator.times)):
            x = (generator.matrix[i, : i + 1] @ flat[: i + 1]).view(noise.shape)
            history[i + 1] = run_body(generator.network, setup, x, i)
        return (generator.matrix[-1] @ flat).view(noise.shape)

    def _select(self, observations: Tensor, candidates: Tensor, uniform: Tensor | None) -> Tensor:
        program = self.decision.q
        if program is None:
            return torch.zeros(len(candidates), dtype=torch.int64, device=candidates.device)
        q = run_body(program, run_setup(program, observations), candidates, 0)[..., 0]
        return self.decision.selection.select(q.expand(-1, *candidates.shape[:2]), uniform)


def run_setup(program: Program, observations: Tensor) -> dict[str, Tensor]:
    """Constants and all setup values (*M, T or 1, B or 1, n) for observations (B, S)."""
    values = {**program.constants, "observations": observations[None]}
    for instruction in program.setup:
        row = None if instruction.row is None else values[instruction.row]
        values[instruction.output] = evaluate(instruction, [values[name] for name in instruction.inputs], row)
    return values


def run_body(program: Program, setup: Mapping[str, Tensor], x: Tensor, i: int) -> Tensor:
    """The output (*M, B, K, n) for candidates x (B, K, A) at evaluation i."""
    values = {"x": x}

    def value(name: str) -> Tensor:
        if name in values:
            return values[name]
        found = setup[name]
        return found[..., i if found.shape[-3] > 1 else 0, :, None, :]

    for instruction in program.body:
        row = None if instruction.row is None else value(instruction.row)
        values[instruction.output] = evaluate(instruction, [value(name) for name in instruction.inputs], row)
    return value(program.output)
