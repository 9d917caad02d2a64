"""Plans as networks train: forwards, keeping what the way back needs, and back by hand.

Autograd sees a whole network as one function. That saves its bookkeeping of every operation, and
what nobody else reads is computed in place or not at all. Values are rows here, (N, n), or (M, N,
n) where the parameters have M members. An operation that has no kernel here is differentiated by
autograd, by itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ddice.diffusion.networks.operations import NORM_EPS
from ddice.diffusion.networks.plan import Layer, OnTensors, evaluate, run_forward

# Of the inputs, then of weight and bias: None where there is none, or where none is wanted.
Gradients = tuple[Sequence[Tensor | None], Sequence[Tensor | None]]
Saved = Any  # what a kernel keeps for its way back


class Kernel(ABC):
    """How an operation trains."""

    @abstractmethod
    def forward(self, layer: Layer, inputs: Sequence[Tensor], free: bool) -> tuple[Tensor, Saved]:
        """The output. free: nobody else reads the first input, which may be overwritten."""

    @abstractmethod
    def backward(self, layer: Layer, saved: Saved, gradient: Tensor, wanted: bool) -> Gradients:
        """From the gradient in the output; wanted: whether any input has one."""


class Linear(Kernel):
    """y = x W + b, so dL/dx = g W^T, dL/dW = x^T g, and dL/db is the sum of g over the rows."""

    def forward(self, layer: Layer, inputs: Sequence[Tensor], free: bool) -> tuple[Tensor, Saved]:
        weight, bias = layer.weight, layer.bias
        assert weight is not None
        assert bias is not None
        # [x_1, ..., x_n] W in one product: a sum of n products passes over its output n times.
        x = inputs[0] if len(inputs) == 1 else torch.cat(tuple(inputs), dim=-1)
        if weight.ndim == 2:
            return torch.addmm(bias, x, weight), x
        return torch.baddbmm(bias.unsqueeze(-2), x, weight), x

    def backward(self, layer: Layer, saved: Saved, gradient: Tensor, wanted: bool) -> Gradients:
        assert layer.weight is not None
        of_parameters = (saved.mT @ gradient, gradient.sum(-2))
        if not wanted:
            return (), of_parameters
        through = gradient @ layer.weight.mT
        if len(layer.inputs) == 1:
            return (through,), of_parameters
        return torch.split_with_sizes(through, layer.sizes, dim=-1), of_parameters


class LayerNorm(Kernel):
    """Normalised rows times the gain, plus the shift: PyTorch's kernel takes one of each, and
    members, who have their own, one after the other.
    """

    def forward(self, layer: Layer, inputs: Sequence[Tensor], free: bool) -> tuple[Tensor, Saved]:
        (x,), gain, shift = inputs, layer.weight, layer.bias
        assert gain is not None
        assert shift is not None
        if gain.ndim == 1:
            y, mean, inverse = torch.native_layer_norm(x, layer.sizes, gain, shift, NORM_EPS)
            return y, (x, mean, inverse)
        found = (
            torch.native_layer_norm(x_m, layer.sizes, gain_m, shift_m, NORM_EPS)
            for x_m, gain_m, shift_m in zip(x, gain, shift, strict=True)
        )
        ys, means, inverses = zip(*found, strict=True)
        return torch.stack(ys), (x, means, inverses)

    def backward(self, layer: Layer, saved: Saved, gradient: Tensor, wanted: bool) -> Gradients:
        back = torch.ops.aten.native_layer_norm_backward.default
        gain, shift, wants = layer.weight, layer.bias, (wanted, True, True)
        assert gain is not None
        assert shift is not None
        x, means, inverses = saved
        if gain.ndim == 1:
            through, *own = back(gradient, x, layer.sizes, means, inverses, gain, shift, wants)
            return (through,), own
        found = (
            back(g, x_m, layer.sizes, mean, inverse, gain_m, shift_m, wants)
            for g, x_m, mean, inverse, gain_m, shift_m in zip(
                gradient, x, means, inverses, gain, shift, strict=True
            )
        )
        throughs, *owns = zip(*found, strict=True)
        return (torch.stack(throughs) if wanted else None,), [torch.stack(own) for own in owns]


class Relu(Kernel):
    """Its slope follows from its value: 1 where that is positive, else 0."""

    def forward(self, layer: Layer, inputs: Sequence[Tensor], free: bool) -> tuple[Tensor, Saved]:
        y = torch.relu_(inputs[0]) if free else torch.relu(inputs[0])
        return y, y

    def backward(self, layer: Layer, saved: Saved, gradient: Tensor, wanted: bool) -> Gradients:
        return (torch.ops.aten.threshold_backward.default(gradient, saved, 0),), ()


class Silu(Kernel):
    """(x s)' = s + x s (1 - s) with s = sigmoid(x)."""

    def forward(self, layer: Layer, inputs: Sequence[Tensor], free: bool) -> tuple[Tensor, Saved]:
        return functional.silu(inputs[0]), inputs[0]

    def backward(self, layer: Layer, saved: Saved, gradient: Tensor, wanted: bool) -> Gradients:
        return (torch.ops.aten.silu_backward.default(gradient, saved),), ()


class Add(Kernel):
    """The gradient of a sum is that of each of its terms."""

    def forward(self, layer: Layer, inputs: Sequence[Tensor], free: bool) -> tuple[Tensor, Saved]:
        return torch.add(*inputs), None

    def backward(self, layer: Layer, saved: Saved, gradient: Tensor, wanted: bool) -> Gradients:
        return (gradient, gradient), ()


class ByAutograd(Kernel):
    """Any operation of the table."""

    def forward(self, layer: Layer, inputs: Sequence[Tensor], free: bool) -> tuple[Tensor, Saved]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        with torch.enable_grad():
            y = evaluate(layer.op, leaves, layer.own, batch=1)
        return y.detach(), (y, leaves)

    def backward(self, layer: Layer, saved: Saved, gradient: Tensor, wanted: bool) -> Gradients:
        y, leaves = saved
        trained = [p for p in layer.own if p.requires_grad]
        found = torch.autograd.grad(
            y, [*leaves, *trained], gradient, retain_graph=True, materialize_grads=True
        )
        rest = iter(found[len(leaves) :])
        return found[: len(leaves)], [next(rest) if p.requires_grad else None for p in layer.own]


KERNELS: Mapping[str, Kernel] = {
    "linear": Linear(),
    "layer_norm": LayerNorm(),
    "relu": Relu(),
    "silu": Silu(),
    "add": Add(),
}
BY_AUTOGRAD = ByAutograd()
# They make a new tensor and keep none of it, so that a single reader may overwrite it.
FRESH = ("linear", "layer_norm")
# Numbers of the widest value of one member (128 KB) from which on members run one after the other:
# what one works on stays in the cache of a core. Below, calls cost more than memory does.
LARGE = 1 << 15


class Pass:
    """One way through a plan and back, which can be gone as often as it is asked for."""

    def __init__(self, plan: Sequence[Layer], live: set[str]):
        """live: the names of the values that have a gradient."""
        self.plan, self.live = plan, live
        self._records: list[tuple[Layer, Kernel, Saved]] = []

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The output of the plan."""
        values = dict(inputs)
        reads = [name for layer in self.plan for name in layer.inputs]
        last = {name: layer.output for layer in self.plan for name in layer.inputs}
        free = {
            layer.output
            for layer in self.plan
            if layer.op in FRESH and reads.count(layer.output) == 1
        }
        for layer in self.plan:
            given = [values[name] for name in layer.inputs]
            # What nobody reads any more makes room for what comes.
            for name in layer.inputs:
                if last[name] == layer.output:
                    values.pop(name, None)
            kernel = KERNELS.get(layer.op, BY_AUTOGRAD)
            if layer.output in self.live:
                y, saved = kernel.forward(layer, given, layer.inputs[0] in free)
                self._records.append((layer, kernel, saved))
            elif kernel is BY_AUTOGRAD:
                y = evaluate(layer.op, given, layer.own, batch=1)
            else:
                y, _ = kernel.forward(layer, given, layer.inputs[0] in free)
            del given
            values[layer.output] = y
        return values[self.plan[-1].output]

    def backward(self, gradient: Tensor) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """From the gradient in the output: those in the inputs, by name, and in the parameters,
        in the order of the plan.
        """
        terms = {self.plan[-1].output: gradient}
        of_parameters: dict[str, Sequence[Tensor | None]] = {}
        for layer, kernel, saved in reversed(self._records):
            given = terms.pop(layer.output, None)
            if given is None:  # the output of the network does not depend on it
                continue
            wanted = [name in self.live for name in layer.inputs]
            found, of_parameters[layer.output] = kernel.backward(layer, saved, given, any(wanted))
            # `found` is empty where none is wanted.
            for name, want, term in zip(layer.inputs, wanted, found, strict=False):
                if want and term is not None:
                    terms[name] = term if name not in terms else terms[name] + term
        none = (None, None)
        own = [
            gradient
            for layer in self.plan
            for parameter, gradient in zip(
                (layer.weight, layer.bias), of_parameters.get(layer.output, none), strict=False
            )
            if parameter is not None
        ]
        return terms, own


class OneByOne:
    """The passes of the members, one after the other."""

    def __init__(self, plan: Sequence[Layer], live: set[str], count: int):
        self.plan = plan
        self._passes = [Pass([_of_member(layer, m) for layer in plan], live) for m in range(count)]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """See `Pass.forward`."""
        each = (
            way.forward({name: x[m] for name, x in inputs.items()})
            for m, way in enumerate(self._passes)
        )
        return torch.stack(tuple(each))

    def backward(self, gradient: Tensor) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """See `Pass.backward`."""
        each = [way.backward(g) for way, g in zip(self._passes, gradient, strict=True)]
        terms, owns = zip(*each, strict=True)
        of_inputs = {name: torch.stack([term[name] for term in terms]) for name in terms[0]}
        of_parameters = [
            None if own[0] is None else torch.stack(own) for own in zip(*owns, strict=True)
        ]
        return of_inputs, of_parameters


def _of_member(layer: Layer, m: int) -> Layer:
    return layer._replace(
        weight=None if layer.weight is None else layer.weight[m],
        bias=None if layer.bias is None else layer.bias[m],
    )


def live_values(plan: Sequence[Layer], inputs: Sequence[str]) -> set[str]:
    """The values that have a gradient, where these inputs have one."""
    live = set(inputs)
    for layer in plan:
        trained = any(p is not None and p.requires_grad for p in (layer.weight, layer.bias))
        if trained or not live.isdisjoint(layer.inputs):
            live.add(layer.output)
    return live


class _Trained(torch.autograd.Function):
    """A whole plan as one function of its inputs and parameters."""

    @staticmethod
    def forward(ctx: Any, way: Pass, names: Sequence[str], *tensors: Tensor) -> Tensor:
        # Kept for its checks: autograd refuses a way back after one of them was changed in place.
        ctx.save_for_backward(*tensors)
        ctx.way, ctx.names = way, names
        # Not the very tensor that the pass may keep: autograd ties its output to this node.
        return way.forward(dict(zip(names, tensors, strict=False))).detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, way, names = ctx.saved_tensors, ctx.way, ctx.names
        if torch.is_grad_enabled():
            return None, None, *_differentiable(way.plan, names, tensors, gradient)
        of_inputs, of_parameters = way.backward(gradient)
        return None, None, *(of_inputs.get(name) for name in names), *of_parameters


def _differentiable(
    plan: Sequence[Layer], names: Sequence[str], tensors: Sequence[Tensor], gradient: Tensor
) -> Iterator[Tensor | None]:
    """The gradients in `tensors`, inputs and then parameters, as something that has a gradient
    itself (`create_graph`, as a penalty on gradients wants it): all is computed again.
    """
    output = run_forward(plan, dict(zip(names, tensors, strict=False)), OnTensors(1))
    wanted = [x for x in tensors if x.requires_grad]
    found = iter(
        torch.autograd.grad(
            output[plan[-1].output], wanted, gradient, create_graph=True, allow_unused=True
        )
    )
    return (next(found) if x.requires_grad else None for x in tensors)


def run(
    plan: Sequence[Layer], inputs: Mapping[str, Tensor], members: tuple[int, ...], batch: int
) -> Tensor:
    """The output of a plan, with a gradient in all that has one; inputs (*members, *batch, n)."""
    parameters = [p for layer in plan for p in layer.own]
    tensors = (*parameters, *inputs.values())
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    leading = {x.shape[:-1] for x in inputs.values()}
    if not trained and len(leading) > 1:
        # What is shared along a batch axis, as a state by its candidates, is multiplied once.
        return run_forward(plan, inputs, OnTensors(batch))[plan[-1].output]
    shape = torch.broadcast_shapes((*members, *(1,) * batch), *leading)
    count = (math.prod(members),) if members else ()
    rows = {
        name: x.expand(*shape, x.shape[-1]).reshape(*count, -1, x.shape[-1])
        for name, x in inputs.items()
    }
    if len(members) > 1:
        plan = [_with_one_axis(layer, members) for layer in plan]
        parameters = [p for layer in plan for p in layer.own]
    live = live_values(plan, [n for n, x in rows.items() if x.requires_grad]) if trained else set()
    largest = math.prod(shape[len(members) :]) * max(layer.size for layer in plan)
    if count and largest >= LARGE and tensors[-1].device.type == "cpu":
        way: Pass | OneByOne = OneByOne(plan, live, *count)
    else:
        way = Pass(plan, live)
    if not trained:
        return way.forward(rows).view(*shape, plan[-1].size)
    output: Tensor = _Trained.apply(way, tuple(rows), *rows.values(), *parameters)  # type: ignore[no-untyped-call]
    return output.view(*shape, plan[-1].size)


def _with_one_axis(layer: Layer, members: tuple[int, ...]) -> Layer:
    """Parameters (*members, ...) -> (M, ...)."""
    last = len(members) - 1
    return layer._replace(
        weight=None if layer.weight is None else layer.weight.flatten(0, last),
        bias=None if layer.bias is None else layer.bias.flatten(0, last),
    )
