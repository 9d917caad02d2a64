"""Programs: a network taken apart, once and for every engine, into what depends on nothing, on the
state, and on the candidate.

Values that depend on time alone become `constants`; values that depend on the state (and time) are
computed by `setup`, once per call and for all times together; `body` is what remains for every
candidate at every evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ddice.diffusion.networks.operations import NotCovered as NotCovered
from ddice.diffusion.networks.operations import operation
from ddice.diffusion.networks.plan import evaluate

SETUP_BATCH = 2  # axes of a setup value between members and numbers: times and states


class Instruction(NamedTuple):
    """One step: `output` = op(`inputs`, `weights`), an entry of the table of operations.

    weights: its parameters, (*M, n). linear: sum_i inputs[i] @ weights[i] + row; weights[i] is (*M,
    in_i, out). slice: the `columns` of the input.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    weights: tuple[Tensor, ...] = ()
    row: str | None = None
    columns: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inputs if self.row is None else (*self.inputs, self.row)

    @property
    def rank(self) -> int:
        """The axes of its weights without members."""
        return operation(self.op).rank

    def of_member(self, m: int) -> Instruction:
        weights = tuple(w[m] if w.ndim > self.rank else w for w in self.weights)
        return self._replace(weights=weights)

    def run(self, inputs: Sequence[Tensor], row: Tensor | None, *, batch: int) -> Tensor:
        """The output from inputs (*M, *batch, n): what every engine must compute."""
        return evaluate(self.op, inputs, self.weights, row, self.columns, batch=batch, fast=True)


@dataclass
class Program:
    """A partially evaluated network. Setup values and constants are (*M, T or 1, B or 1, n), body
    values (*M, B, K, n).

    The inputs are "observations" (1, B, S) of the setup and "x" (B, K, A) of the body. A body
    instruction of evaluation i sees of a setup value v its v[..., i, :, None, :], i = 0 where v has
    no times.
    """

    constants: dict[str, Tensor] = field(default_factory=dict)
    setup: list[Instruction] = field(default_factory=list)
    body: list[Instruction] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    in_body: set[str] = field(default_factory=set)
    output: str = ""
    _known: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def emit(
        self,
        op: str,
        inputs: tuple[str, ...],
        size: int,
        *,
        weights: tuple[Tensor, ...] = (),
        row: str | None = None,
        columns: tuple[int, ...] = (),
    ) -> str:
        """Add an instruction where it belongs, unless it is there; the name of its output."""
        key = op, inputs, columns
        if not weights and key in self._known:
            return self._known[key]
        name = f"{op}_{len(self.sizes)}"
        if not weights:
            self._known[key] = name
        self.sizes[name] = size
        instruction = Instruction(op, inputs, name, weights, row, columns)
        if any(value in self.in_body for value in instruction.reads):
            self.body.append(instruction)
            self.in_body.add(name)
        elif all(value in self.constants for value in instruction.reads):
            self.constants[name] = instruction.run(
                [self.constants[value] for value in inputs],
                None if row is None else self.constants[row],
                batch=SETUP_BATCH,
            )
        else:
            self.setup.append(instruction)
        return name

    def constant(self, value: Tensor) -> str:
        """A constant (*M, T or 1, 1, n)."""
        name = f"constant_{len(self.sizes)}"
        self.sizes[name], self.constants[name] = value.shape[-1], value
        return name

    def rows(self) -> set[str]:
        """The constants and setup values that the body reads."""
        used = {name for step in self.body for name in step.reads}
        return {name for name in (*used, self.output) if name not in self.in_body}

    def members(self) -> Iterator[Program]:
        """The programs of the members, without the axis that holds them; only itself where there
        is none.
        """
        count = max(
            (
                len(weight)
                for step in (*self.setup, *self.body)
                for weight in step.weights
                if weight.ndim > step.rank
            ),
            default=1,
        )
        for m in range(count):
            constants = {
                name: value[m] if value.ndim > 3 else value
                for name, value in self.constants.items()
            }
            setup = [step.of_member(m) for step in self.setup]
            body = [step.of_member(m) for step in self.body]
            yield Program(constants, setup, body, self.sizes, self.in_body, self.output)

    def prune(self) -> Program:
        """The same without what the output does not need."""
        needed = {self.output}
        body: list[Instruction] = []
        setup: list[Instruction] = []
        for kept, instructions in ((body, self.body), (setup, self.setup)):
            for instruction in reversed(instructions):
                if instruction.output in needed:
                    kept.append(instruction)
                    needed.update(instruction.reads)
        constants = {name: value for name, value in self.constants.items() if name in needed}
        return Program(constants, setup[::-1], body[::-1], self.sizes, self.in_body, self.output)
