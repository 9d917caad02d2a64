"""Nodes and weights of an ONNX graph, and the operations of programs as such nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from ddice.diffusion.networks.operations import Function, NotCovered, Sign, Symbol, operation
from ddice.policies.engines.program import Instruction

SIGNS: dict[Sign, str] = {"+": "Add", "-": "Sub", "*": "Mul", "/": "Div"}


class Writer:
    """Nodes and initializers of a graph; values are named, and setup values are shared by the
    loop's body, which sees the outer names.
    """

    def __init__(self, batch: int | None):
        from onnx import helper, numpy_helper

        self.batch, self._helper, self._numpy = batch, helper, numpy_helper
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._constants: dict[tuple[Any, ...], str] = {}
        self._weights: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
        self._known: dict[tuple[Any, ...], str] = {}
        self._count = 0

    def name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def node(
        self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any
    ) -> str:
        output = self.name(op.lower()) if output is None else output
        self.nodes.append(self._helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        """Pieces of these sizes along the last axis."""
        if len(sizes) == 1:
            return [x]
        outputs = [self.name("split") for _ in sizes]
        self.nodes.append(
            self._helper.make_node("Split", [x, self.integers(*sizes)], outputs, axis=-1)
        )
        return outputs

    def array(self, value: np.ndarray) -> str:
        """A small constant, written once."""
        key = (value.tobytes(), value.shape, value.dtype.str)
        if key not in self._constants:
            self._constants[key] = self.name("constant")
            self.initializers.append(self._numpy.from_array(value, self._constants[key]))
        return self._constants[key]

    def tensor(self, value: Tensor) -> str:
        """Weights, written once for each tensor."""
        key = (value.data_ptr(), value.shape, value.stride())
        if key not in self._weights:
            self._weights[key] = (
                self.name("weight"),
                value,
            )  # kept, so that nothing else comes to lie where it lies
            array = np.ascontiguousarray(value.detach().cpu().numpy(), dtype=np.float32)
            self.initializers.append(self._numpy.from_array(array, self._weights[key][0]))
        return self._weights[key][0]

    def floats(self, *values: float) -> str:
        return self.array(np.array(values[0] if len(values) == 1 else values, dtype=np.float32))

    def integers(self, *values: int) -> str:
        return self.array(np.array(values, dtype=np.int64))

    @contextmanager
    def inner(self) -> Iterator[list[Any]]:
        """The nodes of a graph inside this one. It sees what was computed before, and nobody
        outside sees what it computes.
        """
        outside = self.nodes, self._known
        self.nodes, self._known = [], dict(self._known)
        try:
            yield self.nodes
        finally:
            self.nodes, self._known = outside

    def once(self, key: tuple[Any, ...], make: Callable[[], str]) -> str:
        """A value that is computed once, however many formulas ask for it: silu and its gradient
        share a sigmoid.
        """
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def operation(self, step: Instruction, inputs: Sequence[str]) -> str:
        """Every operation but products: it acts alike on setup and body values. Raises NotCovered,
        naming the operation.
        """
        if step.op == "concat":
            return self.node("Concat", inputs, axis=-1)
        if step.op == "slice":
            start, stop = step.columns
            places = (self.integers(start), self.integers(stop), self.integers(-1))
            return self.node("Slice", (inputs[0], *places))
        found = operation(step.op)
        values = [*inputs, *(self.tensor(weight) for weight in step.weights)]
        if found.onnx is not None:
            return found.onnx(self, *values)
        if found.formula is None:
            raise NotCovered(f"not covered: {step.op}, which states no form in ONNX")
        written = found.formula(*(NodeSymbol(self, name) for name in values))
        assert isinstance(written, NodeSymbol)
        return written.name


class NodeSymbol(Symbol):
    """A value of a formula as the output of nodes."""

    def __init__(self, writer: Writer, name: str):
        self.writer, self.name = writer, name

    def _name(self, value: Symbol | float) -> str:
        if isinstance(value, NodeSymbol):
            return value.name
        assert isinstance(value, float | int)
        return self.writer.floats(value)

    def combine(self, sign: Sign, left: Symbol | float, right: Symbol | float) -> NodeSymbol:
        names = self._name(left), self._name(right)
        name = self.writer.once((sign, *names), lambda: self.writer.node(SIGNS[sign], names))
        return NodeSymbol(self.writer, name)

    def call(self, function: Function) -> NodeSymbol:
        def make() -> str:
            if isinstance(function.onnx, str):
                return self.writer.node(function.onnx, (self.name,))
            return function.onnx(self.writer, self.name)

        return NodeSymbol(self.writer, self.writer.once((function, self.name), make))
