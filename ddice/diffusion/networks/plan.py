"""Plans: lists of layers, carried out forwards and in reverse, each in one way for whatever is to
come of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ddice.diffusion.networks.operations import (
    BACKWARD,
    OPERATIONS,
    NotCovered,
    Target,
    W,
    operation,
)


class Layer(NamedTuple):
    """One step of a plan: `output` = op(`inputs`), by name. A "linear" of several inputs acts on
    their concatenation.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    sizes: tuple[int, ...]  # of the inputs
    size: int  # of the output
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def columns(self) -> list[tuple[int, int]]:
        """(start, stop) of each input among all of them side by side."""
        stops = list(accumulate(self.sizes))
        # Not strict: the starts are one longer than the stops.
        return list(zip([0, *stops], stops, strict=False))

    @property
    def own(self) -> tuple[Tensor, ...]:
        """Weight and bias, where there are any."""
        return tuple(p for p in (self.weight, self.bias) if p is not None)

    def parameters(self) -> tuple[Tensor, ...]:
        """As the operation takes them; of a "linear" the rows of the weight for each input."""
        if self.op == "linear":
            assert self.weight is not None
            if len(self.inputs) == 1:
                return (self.weight,)
            # W (*members, in, out) by rows, so that the sum of x_i W_i needs no concatenation.
            return torch.split_with_sizes(self.weight, self.sizes, dim=-2)
        return self.own


def run_forward(plan: Sequence[Layer], inputs: Mapping[str, W], target: Target[W]) -> dict[str, W]:
    """Every value of a plan, by name. Raises NotCovered for an operation that no table states."""
    values = dict(inputs)
    for layer in plan:
        values[layer.output] = target.emit(
            layer.op,
            tuple(values[name] for name in layer.inputs),
            layer.size,
            layer.parameters(),
            bias=layer.bias if layer.op == "linear" else None,
        )
    return values


def run_backward(
    plan: Sequence[Layer], values: Mapping[str, W], seed: W, wrt: str, target: Target[W]
) -> W | None:
    """The gradient in the input `wrt` from the gradient `seed` in the output, by reverse mode; None
    where the output does not depend on it. Raises NotCovered for a layer that states no gradient.
    """
    # The part of the plan between `wrt` and the output. What depends on state and time alone needs
    # no gradient, which saves most of a reverse pass in the actions.
    depends = {wrt}
    for layer in plan:
        if depends.intersection(layer.inputs):
            depends.add(layer.output)
    terms: dict[str, list[W]] = {plan[-1].output: [seed]}
    # Every reader of a value stands after it in the plan, so in reverse order all terms of a
    # gradient are there when its layer is reached.
    for layer in reversed(plan):
        if layer.output not in terms or layer.output not in depends:
            continue
        gradient = _total(terms.pop(layer.output), layer.size, target)
        for index, name in enumerate(layer.inputs):
            if name in depends:
                local = _through(layer, index, values[name], gradient, target)
                terms.setdefault(name, []).append(local)
    if wrt not in terms:
        return None
    size = next(
        size
        for layer in plan
        for name, size in zip(layer.inputs, layer.sizes, strict=True)
        if name == wrt
    )
    return _total(terms[wrt], size, target)


def _total(terms: list[W], size: int, target: Target[W]) -> W:
    # The chain rule: a value that several layers read gets the sum of their gradients.
    return terms[0] if len(terms) == 1 else target.emit("add", tuple(terms), size)


def _through(layer: Layer, index: int, x: W, gradient: W, target: Target[W]) -> W:
    """The gradient in one input x of a layer, from the gradient in its output."""
    found = operation(layer.op)
    # Products and moves of numbers state what to emit; formulas have a backward formula of
    # (gradient, x).
    if found.gradient is not None:
        return found.gradient(target, gradient, layer.parameters(), index, layer.columns[index])
    if found.backward is not None:
        # Only those that the gradient reads: of a layer norm the gain, not the shift.
        parameters = layer.parameters()[: found.backward.parameters]
        return target.emit(layer.op + BACKWARD, (gradient, x), layer.sizes[index], parameters)
    known = ", ".join(
        name for name, other in OPERATIONS.items() if other.gradient or other.backward
    )
    raise NotCovered(
        f"not covered: no gradient is written for a {layer.op!r} layer: only for {known}"
    )


def along(parameter: Tensor, batch: int, trailing: int = 1) -> Tensor:
    """(*members, ..., n) -> the same with `batch` 1s after the members, so that it broadcasts
    against (*members, *batch, n).
    """
    members = parameter.shape[:-trailing]
    return parameter.reshape(*members, *(1,) * batch, *parameter.shape[-trailing:])


def evaluate(
    op: str,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor] = (),
    row: Tensor | None = None,
    columns: Sequence[int] = (),
    *,
    batch: int,
    fast: bool = False,
) -> Tensor:
    """One operation on tensors (*members, *batch, n), whose member axes may be missing where they
    are shared; row: what a linear adds.
    """
    found = operation(op)
    # A parameter is (*members, n), or (*members, in, out) for rank 2: the rest of its axes.
    members = max((p.ndim - found.rank for p in parameters), default=0)
    if found.rank == 1:
        parameters = [along(p, batch) for p in parameters]
    added = () if row is None else (row,)
    # Broadcasting aligns axes from the right, so missing member axes become 1s on the left.
    values = [_with_members(x, members + batch + 1) for x in (*inputs, *added)]
    xs, rest = values[: len(inputs)], values[len(inputs) :]
    return found.on_tensors(fast)(*xs, *parameters, *rest, *columns)


def _with_members(x: Tensor, rank: int) -> Tensor:
    return x if x.ndim >= rank else x.reshape(*(1,) * (rank - x.ndim), *x.shape)


class OnTensors:
    """A target that computes at once; `batch` axes stand between members and numbers."""

    def __init__(self, batch: int):
        self.batch = batch

    def emit(
        self,
        op: str,
        inputs: tuple[Tensor, ...],
        size: int,
        parameters: tuple[Tensor, ...] = (),
        *,
        bias: Tensor | None = None,
        columns: tuple[int, ...] = (),
    ) -> Tensor:
        row = None if bias is None else along(bias, self.batch)
        return evaluate(op, inputs, parameters, row, columns, batch=self.batch)
