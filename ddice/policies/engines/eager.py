"""Plain tensors: state and time terms once per call, the guidance gradient by hand, the solver
as one matrix, no autograd and no host round trip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ddice.diffusion.networks.operations import operation
from ddice.diffusion.networks.plan import along
from ddice.diffusion.samplers.reference import gaussian_mean_and_log_std
from ddice.policies.engines.base import Choice, Engine
from ddice.policies.engines.decision import ActorProgram, DecisionProgram, GaussianProgram
from ddice.policies.engines.products import Products
from ddice.policies.engines.program import SETUP_BATCH, Instruction, Program

Rows = Mapping[
    str, tuple[Tensor, ...]
    # of every setup value, (*M, B or 1, n) or (n) for each time; one where it does not depend on
    # time
]
Values = dict[str, Tensor]  # of the body, (*M, B * K, n)
Run = Callable[[Values, Rows, int], None]
BODY_BATCH = 1  # axes of a body value between members and numbers: B * K candidates
SHAPES_KEPT = 64  # programs, numbers of states and of candidates whose bodies are kept


class EagerEngine(Engine):
    """Runs a decision's program with one tensor operation per instruction."""

    name: ClassVar[str] = "eager"

    def __init__(self, decision: DecisionProgram, *, rows_per_call: int):
        super().__init__(rows_per_call)
        self.decision = decision
        self._bodies: dict[tuple[int, int, int], Body] = {}
        self._products = Products()

    def free(self) -> None:
        self._bodies.clear()

    def run(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
        raw = self._generate(observations, noise)
        candidates = raw.clamp(-1, 1) if self.decision.clip_before_scoring else raw
        chosen = self._select(observations, candidates, uniform)
        actions = torch.take_along_dim(candidates, chosen[:, None, None], 1)[:, 0].clamp(-1, 1)
        return Choice(actions, raw, chosen)

    def _generate(self, observations: Tensor, noise: Tensor) -> Tensor:
        generator = self.decision.generator
        setup = run_setup(generator.network, observations)
        if isinstance(generator, GaussianProgram):
            mean, log_std = gaussian_mean_and_log_std(setup[generator.network.output][0])
            return mean[:, None] + log_std.exp()[:, None] * noise
        if isinstance(generator, ActorProgram):
            return torch.tanh(setup[generator.network.output][0])[:, None].expand_as(noise)
        body = self._body(generator.network, *noise.shape[:2])
        rows = body.rows(setup)
        history = noise.new_empty(len(generator.times) + 1, noise.numel())
        history[0] = noise.reshape(-1)
        for i in range(len(generator.times)):
            x = torch.mv(history[: i + 1].T, generator.matrix[i, : i + 1])
            history[i + 1] = body.run(x.view(-1, noise.shape[-1]), rows, i).reshape(-1)
        return torch.mv(history.T, generator.matrix[-1]).view(noise.shape)

    def _body(self, program: Program, batch: int, candidates: int) -> Body:
        key = (id(program), batch, candidates)
        if key not in self._bodies:
            if len(self._bodies) == SHAPES_KEPT:
                self._bodies.pop(next(iter(self._bodies)))
            self._bodies[key] = Body(program, batch, candidates, self._products)
        return self._bodies[key]

    def _select(self, observations: Tensor, candidates: Tensor, uniform: Tensor | None) -> Tensor:
        batch, count, _ = candidates.shape
        if self.decision.q is None:
            return torch.zeros(batch, dtype=torch.int64, device=candidates.device)
        q = self._q_values(observations, candidates)
        return self.decision.selection.select(q.view(-1, batch, count), uniform)

    def _q_values(self, observations: Tensor, candidates: Tensor) -> Tensor:
        """The members' Q (*M, B * K, 1)."""
        program = self.decision.q
        assert program is not None
        body, setup = self._body(program, *candidates.shape[:2]), run_setup(program, observations)
        return body.run(candidates.reshape(-1, candidates.shape[-1]), body.rows(setup), 0)


def run_setup(program: Program, observations: Tensor) -> dict[str, Tensor]:
    """Constants and all setup values (*M, T or 1, B or 1, n) for observations (B, S)."""
    values = {**program.constants, "observations": observations[None]}
    for instruction in program.setup:
        row = None if instruction.row is None else values[instruction.row]
        inputs = [values[name] for name in instruction.inputs]
        values[instruction.output] = instruction.run(inputs, row, batch=SETUP_BATCH)
    return values


class Body:
    """The body of a program for B states and K candidates: calls on values (*M, B * K, n), which
    are let go of after their last use.
    """

    def __init__(self, program: Program, batch: int, candidates: int, products: Products):
        self.program, self.batch, self.candidates, self._products = (
            program,
            batch,
            candidates,
            products,
        )
        self._activated = self._fusable()
        steps = [step for step in program.body if step.output not in self._activated.values()]
        last = {
            name: j for j, step in enumerate(steps) for name in (*step.inputs, self._name(step))
        } | {program.output: len(steps)}
        dead: list[list[str]] = [[] for _ in range(len(steps) + 1)]
        for name in program.in_body.intersection(last):
            dead[last[name]].append(name)
        self._calls = [(self._call(step), names) for step, names in zip(steps, dead, strict=False)]

    def rows(self, setup: Mapping[str, Tensor]) -> Rows:
        """The setup values that the body reads, by time."""
        return {name: _by_time(setup[name]) for name in self.program.rows()}

    def run(self, x: Tensor, rows: Rows, i: int) -> Tensor:
        """The output for x (B * K, A) at evaluation i, (*M, B * K, n)."""
        values = {"x": x}
        for call, dead in self._calls:
            call(values, rows, i)
            for name in dead:
                del values[name]
        return values[self.program.output]

    def _name(self, step: Instruction) -> str:
        """Under which name a step leaves its output."""
        return self._activated.get(step.output, step.output)

    def _fusable(self) -> dict[str, str]:
        """Packed products that nobody but a silu reads -> that silu, which the product then
        takes along.
        """
        steps, rows = self.program.body, self.batch * self.candidates
        readers = Counter(name for step in steps for name in step.reads) + Counter(
            [self.program.output]
        )
        packed = {
            step.output
            for step in steps
            if step.op == "linear"
            and len(step.weights) == 1
            and step.weights[0].ndim == 2
            and self.program.in_body.issuperset(step.inputs)
            and (step.row is None or self._shared(step.row))
            and self._products.packs(step.weights[0], rows)
        }
        return {
            x: step.output
            for step in steps
            if step.op == "silu" and (x := step.inputs[0]) in packed and readers[x] == 1
        }

    def _shared(self, row: str) -> bool:
        """Whether a row is the same for all candidates, so that a product can add it."""
        return self.batch == 1 or row in self.program.constants

    def _call(self, step: Instruction) -> Run:
        """One instruction as a call that leaves its output among the values."""
        output, inputs, candidates = step.output, step.inputs, self.candidates
        if step.op == "linear":
            return self._linear(step)
        if step.op == "add" and inputs[0] in self.program.in_body:
            return self._add(step)
        form = operation(step.op).on_tensors(fast=True)
        fixed = (*(along(weight, BODY_BATCH) for weight in step.weights), *step.columns)

        def formula(values: Values, rows: Rows, i: int) -> None:
            given = [_value(values, rows, name, i, candidates) for name in inputs]
            values[output] = form(*given, *fixed)

        return formula

    def _linear(self, step: Instruction) -> Run:
        """sum of inputs @ weights + row; the row inside the product where all candidates share
        it.
        """
        row, output, by_state = step.row, self._name(step), (self.batch, self.candidates)
        inside, silu = row is not None and self._shared(row), output != step.output
        products = [
            self._products.make(weight, self.batch * self.candidates, silu=silu)
            for weight in step.weights
        ]
        (first, product), *others = zip(step.inputs, products, strict=True)

        def linear(values: Values, rows: Rows, i: int) -> None:
            value = None if row is None else _at(rows[row], i)
            y = product(values[first], value if inside else None)
            for name, other in others:
                y = other(values[name], y)
            if value is not None and not inside:
                y.unflatten(-2, by_state).add_(value[..., None, :])
            values[output] = y

        return linear

    def _add(self, step: Instruction) -> Run:
        """The sum of a body value and others; the rows of states are spread over their
        candidates as they are added.
        """
        output, (first, *others), by_state = step.output, step.inputs, (self.batch, self.candidates)

        def add(values: Values, rows: Rows, i: int) -> None:
            y = values[first]
            for name in others:
                other = values[name] if name in values else _at(rows[name], i)
                if other.ndim == 1 or other.shape[-2] in (1, y.shape[-2]):
                    y = y + other
                else:
                    y = (y.unflatten(-2, by_state) + other[..., None, :]).flatten(-3, -2)
            values[output] = y

        return add


def _value(values: Values, rows: Rows, name: str, i: int, candidates: int) -> Tensor:
    """A body value, or a setup value spread over the candidates."""
    if name in values:
        return values[name]
    row = _at(rows[name], i)
    return row if row.ndim == 1 or row.shape[-2] == 1 else row.repeat_interleave(candidates, -2)


def _by_time(value: Tensor) -> tuple[Tensor, ...]:
    """(*M, T or 1, B or 1, n) -> for each time (*M, B or 1, n), or (n) without members and for
    all states alike, as products take a bias.
    """
    return (
        value.squeeze(-2).unbind(-2)
        if value.ndim == 3 and value.shape[-2] == 1
        else value.unbind(-3)
    )


def _at(times: tuple[Tensor, ...], i: int) -> Tensor:
    return times[i if len(times) > 1 else 0]
