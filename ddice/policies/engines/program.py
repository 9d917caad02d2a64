"""Programs: a network taken apart, once and for every engine, into what depends on nothing, on the
state, and on the candidate.

Values that depend on time alone become `constants`; values that depend on the state (and time) are
computed by `setup`, once per call and for all times together; `body` is what remains for every
candidate at every evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ddice.diffusion.networks import fourier, normalise, normalise_backward

Op = Literal[
    "linear", "layer_norm", "fourier", "add", "concat", "relu", "silu",
    "slice", "standardize", "clean", "relu_backward", "silu_backward", "layer_norm_backward",
]  # fmt: skip


class NotCovered(ValueError):
    """An engine cannot run this policy; the message names the layer, the solver or the Q that
    stands in the way.
    """


class Instruction(NamedTuple):
    """One step: `output` = op(`inputs`).

    linear: sum_i inputs[i] @ weights[i] + row; weights[i] is (*M, in_i, out). layer_norm: weights =
    (gain, shift), each (*M, n). layer_norm_backward: inputs (x, gradient), weights = (gain,).
    silu_backward, relu_backward: inputs (x, gradient). clean: x / alpha - noise * sigma / alpha
    within [-1, 1], inputs (noise, x, 1 / alpha, sigma / alpha). standardize: (input - weights[0]) /
    weights[1]. fourier: (sin, cos) of input[..., :1] * weights[0]. slice: the `columns` of the
    input.
    """

    op: Op
    inputs: tuple[str, ...]
    output: str
    weights: tuple[Tensor, ...] = ()
    row: str | None = None
    columns: tuple[int, int] = (0, 0)


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
        op: Op,
        inputs: tuple[str, ...],
        size: int,
        *,
        weights: tuple[Tensor, ...] = (),
        row: str | None = None,
        columns: tuple[int, int] = (0, 0),
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
        used = inputs if row is None else (*inputs, row)
        if any(value in self.in_body for value in used):
            self.body.append(instruction)
            self.in_body.add(name)
        elif all(value in self.constants for value in used):
            self.constants[name] = evaluate(
                instruction,
                [self.constants[value] for value in inputs],
                None if row is None else self.constants[row],
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
        used = {name for step in self.body for name in (*step.inputs, step.row) if name is not None}
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
                if weight.ndim > _rank(step)
            ),
            default=1,
        )
        for m in range(count):
            constants = {
                name: value[m] if value.ndim > 3 else value
                for name, value in self.constants.items()
            }
            setup, body = (
                [
                    step._replace(
                        weights=tuple(w[m] if w.ndim > _rank(step) else w for w in step.weights)
                    )
                    for step in steps
                ]
                for steps in (self.setup, self.body)
            )
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
                    needed.update(
                        instruction.inputs, () if instruction.row is None else (instruction.row,)
                    )
        constants = {name: value for name, value in self.constants.items() if name in needed}
        return Program(constants, setup[::-1], body[::-1], self.sizes, self.in_body, self.output)


def _rank(step: Instruction) -> int:
    """The axes of a step's weights without members."""
    return 2 if step.op == "linear" else 1


def evaluate(instruction: Instruction, inputs: list[Tensor], row: Tensor | None) -> Tensor:
    """One instruction on tensors that broadcast against each other: what every engine must
    compute.
    """
    op, x, weights = instruction.op, inputs[0], instruction.weights
    if op == "linear":
        bias = (
            row.flatten()
            if row is not None and weights[0].ndim == 2 and row.numel() == row.shape[-1]
            else None
        )  # inside the product
        y = x @ _matrix(weights[0]) if bias is None else functional.linear(x, weights[0].mT, bias)
        y = sum(
            (
                value @ _matrix(weight)
                for value, weight in zip(inputs[1:], weights[1:], strict=True)
            ),
            y,
        )
        return y if row is None or bias is not None else y + row
    if op == "add":
        return sum(inputs[1:], x)
    if op == "concat":
        if len({value.shape[:-1] for value in inputs}) > 1:
            shape = torch.broadcast_shapes(*(value.shape[:-1] for value in inputs))
            inputs = [value.expand(*shape, value.shape[-1]) for value in inputs]
        return torch.cat(inputs, dim=-1)
    if op == "slice":
        return x[..., instruction.columns[0] : instruction.columns[1]]
    if op == "silu":
        return functional.silu(x)
    if op == "relu":
        return torch.relu(x)
    if op == "silu_backward":
        return torch.ops.aten.silu_backward(inputs[1], x)
    if op == "relu_backward":
        return inputs[1] * (x > 0)
    if op == "layer_norm":
        return normalise(x) * _vector(weights[0]) + _vector(weights[1])
    if op == "layer_norm_backward":
        return normalise_backward(x, inputs[1] * _vector(weights[0]))
    if op == "clean":
        _, actions, inverse, factor = inputs
        return (actions * inverse - x * factor).clamp_(-1, 1)
    if op == "standardize":
        return (x - weights[0]) / weights[1]
    if op == "fourier":
        return fourier(x, _vector(weights[0]))
    raise NotCovered(f"not covered: {op}")


def _matrix(weight: Tensor) -> Tensor:
    """(*M, in, out) -> the same against (*M, T or B, B or K, in)."""
    return weight if weight.ndim == 2 else weight.unsqueeze(-3)


def _vector(weight: Tensor) -> Tensor:
    """(*M, n) -> the same against (*M, T or B, B or K, n)."""
    return weight if weight.ndim == 1 else weight[..., None, None, :]
