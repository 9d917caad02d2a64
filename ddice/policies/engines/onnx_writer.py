"""Nodes and weights of an ONNX graph, and the operations of programs as such nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ddice.diffusion.networks import NORM_EPS
from ddice.policies.engines.program import Instruction, NotCovered


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
        self._gates: dict[str, tuple[str, str]] = {}
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

    def elementwise(self, step: Instruction, inputs: Sequence[str]) -> str:
        """Every operation that acts alike on setup and body values."""
        x, weights = inputs[0], step.weights
        if step.op == "add":
            for other in inputs[1:]:
                x = self.node("Add", (x, other))
            return x
        if step.op == "concat":
            return self.node("Concat", inputs, axis=-1)
        if step.op == "slice":
            start, stop = step.columns
            return self.node(
                "Slice", (x, self.integers(start), self.integers(stop), self.integers(-1))
            )
        if step.op == "relu":
            return self.node("Relu", (x,))
        if step.op == "silu":
            return self._silu(x)[1]
        if step.op == "relu_backward":
            return self.node(
                "Mul",
                (
                    inputs[1],
                    self.node("Cast", (self.node("Greater", (x, self.floats(0.0))),), to=1),
                ),
            )
        if step.op == "silu_backward":
            gate, value = self._silu(x)
            slope = self.node(
                "Add",
                (self.node("Mul", (gate, self.node("Sub", (self.floats(1.0), value)))), value),
            )
            return self.node("Mul", (inputs[1], slope))
        if step.op == "clean":
            _, actions, inverse, factor = inputs
            clean = self.node(
                "Sub", (self.node("Mul", (actions, inverse)), self.node("Mul", (x, factor)))
            )
            return self.node("Clip", (clean, self.floats(-1.0), self.floats(1.0)))
        if step.op == "standardize":
            return self.node(
                "Div", (self.node("Sub", (x, self.tensor(weights[0]))), self.tensor(weights[1]))
            )
        if step.op == "layer_norm":
            gain, shift = (self.tensor(weight) for weight in weights)
            return self.node("LayerNormalization", (x, gain, shift), axis=-1, epsilon=NORM_EPS)
        if step.op == "layer_norm_backward":
            return self._layer_norm_backward(x, inputs[1], weights[0])
        raise NotCovered(f"not covered: {step.op}")

    def _silu(self, x: str) -> tuple[str, str]:
        """sigmoid(x) and x sigmoid(x), once for the activation and for its gradient."""
        if x not in self._gates:
            gate = self.node("Sigmoid", (x,))
            self._gates[x] = gate, self.node("Mul", (x, gate))
        return self._gates[x]

    def _mean(self, x: str) -> str:
        return self.node("ReduceMean", (x, self.integers(-1)), keepdims=1)

    def _layer_norm_backward(self, x: str, gradient: str, gain: Tensor) -> str:
        gradient = self.node("Mul", (gradient, self.tensor(gain)))
        centred = self.node("Sub", (x, self._mean(x)))
        variance = self.node(
            "Add", (self._mean(self.node("Mul", (centred, centred))), self.floats(NORM_EPS))
        )
        inverse = self.node("Reciprocal", (self.node("Sqrt", (variance,)),))
        normal = self.node("Mul", (centred, inverse))
        along = self.node("Mul", (normal, self._mean(self.node("Mul", (gradient, normal)))))
        return self.node(
            "Mul",
            (
                inverse,
                self.node("Sub", (self.node("Sub", (gradient, self._mean(gradient))), along)),
            ),
        )
