"""Operations, each stated in one place: networks and every engine read this table.

Most operations are formulas, and a formula is written once. It computes where it is given tensors,
and writes itself down where it is given symbols: as nodes of an ONNX graph or as lines of a Triton
kernel. What engines know by a name of their own stands beside the formula: a kernel of PyTorch, an
operator of ONNX. The functions that formulas call, such as `sigmoid`, state their three forms here
too. To add an operation is to add an entry to `OPERATIONS`; an activation is then a value of
`MLP.activation`.

Products, concatenations and slices are no formulas: where their numbers lie in memory is what
engines are about, so each engine lays them out itself. Here they have their meaning on tensors, and
their gradients.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

# Keeps 1 / deviation finite for a row of equal numbers. PyTorch and ONNX have the same default.
NORM_EPS = 1e-5
BACKWARD = "_backward"  # silu_backward: the gradient of silu, from (gradient, x)


class NotCovered(ValueError):
    """Something is missing that was asked for: the form of an operation, or an engine for a policy.
    The message names the operation, the layer, the solver or the Q that stands in the way.
    """


class Graph(Protocol):
    """An ONNX graph that is being written; values are known by name."""

    def node(self, op: str, inputs: Sequence[str]) -> str: ...

    def floats(self, *values: float) -> str: ...

    def integers(self, *values: int) -> str: ...


Sign = Literal["+", "-", "*", "/"]


class Symbol(ABC):
    """A value of a formula that is written down rather than computed."""

    @abstractmethod
    def combine(self, sign: Sign, left: Symbol | float, right: Symbol | float) -> Symbol:
        """left sign right, of which at least one is a symbol."""

    @abstractmethod
    def call(self, function: Function) -> Symbol:
        """function(self)."""

    def __add__(self, other: Symbol | float) -> Symbol:
        return self.combine("+", self, other)

    def __radd__(self, other: float) -> Symbol:
        return self.combine("+", other, self)

    def __sub__(self, other: Symbol | float) -> Symbol:
        return self.combine("-", self, other)

    def __rsub__(self, other: float) -> Symbol:
        return self.combine("-", other, self)

    def __mul__(self, other: Symbol | float) -> Symbol:
        return self.combine("*", self, other)

    def __rmul__(self, other: float) -> Symbol:
        return self.combine("*", other, self)

    def __truediv__(self, other: Symbol | float) -> Symbol:
        return self.combine("/", self, other)


V = TypeVar("V", Tensor, Symbol)  # what formulas are written over
W = TypeVar("W")  # what plans are carried out on: tensors, or names of a program


@dataclass(frozen=True)
class Function:
    """A function of one value in three forms.

    triton: text with `{x}` for the value, a tile (rows, columns). `onnx`: an operator, or what adds
    the nodes and gives the name of the result. rows: it sees whole rows, so that a tile must hold
    them; its text may use `width`, which columns are there, and `SIZE`, how many.
    """

    torch: Callable[[Tensor], Tensor]
    onnx: str | Callable[[Graph, str], str]
    triton: str
    rows: bool = False

    def __call__(self, x: V) -> V:
        if isinstance(x, Symbol):
            return x.call(self)
        return self.torch(x)


def _positive_onnx(graph: Graph, x: str) -> str:
    zero = graph.floats(0.0)
    # Greater gives booleans, which ONNX does not multiply: Where turns them into floats.
    return graph.node("Where", (graph.node("Greater", (x, zero)), graph.floats(1.0), zero))


sigmoid = Function(torch.sigmoid, "Sigmoid", "tl.sigmoid({x})")
# max(x, 0), and NaN stays NaN
ramp = Function(torch.relu, "Relu", "tl.maximum({x}, 0.0, propagate_nan=tl.PropagateNan.ALL)")
# 1 where x > 0, else 0
positive = Function(lambda x: x > 0, _positive_onnx, "tl.where({x} > 0, 1.0, 0.0)")
# the nearest number in [-1, 1], and NaN stays NaN
within_bounds = Function(
    torch=lambda x: x.clamp(-1, 1),
    onnx=lambda graph, x: graph.node("Clip", (x, graph.floats(-1.0), graph.floats(1.0))),
    triton="tl.clamp({x}, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)",
)
inverse_root = Function(
    torch=torch.rsqrt,
    onnx=lambda graph, x: graph.node("Reciprocal", (graph.node("Sqrt", (x,)),)),
    triton="(1 / tl.sqrt({x}))",
)
# over the last axis, which stays
mean = Function(
    torch=lambda x: x.mean(-1, keepdim=True),
    onnx=lambda graph, x: graph.node("ReduceMean", (x, graph.integers(-1))),
    triton="(tl.sum(tl.where(width, {x}, 0.0), 1)[:, None] / SIZE)",
    rows=True,
)


class Target(Protocol[W]):
    """Where a plan is carried out: on tensors, at once, or as instructions of a program."""

    def emit(
        self,
        op: str,
        inputs: tuple[W, ...],
        size: int,
        parameters: tuple[Tensor, ...] = (),
        *,
        bias: Tensor | None = None,
        columns: tuple[int, ...] = (),
    ) -> W:
        """op(inputs), `size` numbers. `bias` (*members, size) of a linear, `columns` (start, stop)
        of a slice.
        """


class Gradient(Protocol):
    """The gradient in input `index`, which is columns start, ..., stop - 1 of the inputs side by
    side, from the gradient in the output.
    """

    def __call__(
        self,
        target: Target[W],
        gradient: W,
        parameters: Sequence[Tensor],
        index: int,
        columns: tuple[int, int],
    ) -> W: ...


@dataclass(frozen=True)
class Operation:
    """formula(*inputs, *parameters) -> the output.

    Parameters are (*members, n), or (*members, in, out) for rank = 2, and formulas see them with
    the axes that broadcast against the inputs. backward: the gradient as an operation of (gradient,
    x) and the first of the parameters. torch: the same as `formula` on tensors, as networks train:
    by a kernel of PyTorch's own. fast: the same to rounding, for engines without autograd. onnx:
    by an operator of ONNX's own.
    """

    inputs: int
    """Where there can be more, as of a sum, the formula of the first two."""
    parameters: int = 0
    formula: Callable[..., Any] | None = None
    backward: Operation | None = None
    gradient: Gradient | None = None
    torch: Callable[..., Tensor] | None = None
    fast: Callable[..., Tensor] | None = None
    onnx: Callable[..., str] | None = None
    rank: int = 1

    @property
    def activation(self) -> bool:
        """Whether it is a function of one value alone."""
        return self.formula is not None and self.inputs == 1 and self.parameters == 0

    def on_tensors(self, fast: bool) -> Callable[..., Tensor]:
        form = (self.fast if fast else None) or self.torch or self.formula
        assert form is not None
        return form


def relu(x: V) -> V:
    return ramp(x)


def relu_backward(gradient: V, x: V) -> V:
    # The slope at exactly 0 is chosen as 0, as autograd chooses it.
    return gradient * positive(x)


def silu(x: V) -> V:
    return x * sigmoid(x)


def silu_backward(gradient: V, x: V) -> V:
    """(x s)' = s + x s (1 - s) with s = sigmoid(x)."""
    # s is factored out: s (1 + x (1 - s)).
    gate = sigmoid(x)
    return gradient * (gate * (1 + x * (1 - gate)))


def silu_backward_torch(gradient: Tensor, x: Tensor) -> Tensor:
    """The same, multiplied in the order in which the reference has always rounded it. Kernels that
    take this order hold one tile more, and spill registers.
    """
    gate = torch.sigmoid(x)
    return gradient * gate * (1 + x * (1 - gate))


def normalised(x: V) -> tuple[V, V]:
    """(x - mean) / deviation and 1 / deviation, deviation^2 = variance + NORM_EPS."""
    # Layer normalisation, arXiv 1607.06450, over the last axis: (..., n) -> (..., n) and (..., 1).
    # The variance is the mean of squares of the centred values, not E[x^2] - E[x]^2, which cancels.
    centred = x - mean(x)
    inverse = inverse_root(mean(centred * centred) + NORM_EPS)
    return centred * inverse, inverse


def layer_norm(x: V, gain: V, shift: V) -> V:
    return normalised(x)[0] * gain + shift


def layer_norm_backward(gradient: V, x: V, gain: V) -> V:
    """With n = normalised x and g = gradient * gain: (g - mean(g) - n mean(g n)) / deviation."""
    # dn_i/dx_j = (delta_ij - 1/n - n_i n_j / n) / deviation. This is exact with NORM_EPS too: the
    # epsilon is in `deviation` and in the normalised values.
    gradient = gradient * gain
    normal, inverse = normalised(x)
    return inverse * (gradient - mean(gradient) - normal * mean(gradient * normal))


def layer_norm_torch(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    # Gain and shift differ by member here, and the kernel takes one of each: they follow it.
    return functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * gain + shift


def layer_norm_fast(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """One kernel where all rows share gain and shift."""
    if gain.numel() != x.shape[-1]:
        return layer_norm_torch(x, gain, shift)
    return functional.layer_norm(x, x.shape[-1:], gain.flatten(), shift.flatten(), NORM_EPS)


def layer_norm_onnx(graph: Graph, x: str, gain: str, shift: str) -> str:
    """The operator's own defaults are the last axis and an epsilon of 1e-5, `NORM_EPS`."""
    return graph.node("LayerNormalization", (x, gain, shift))


def standardize(x: V, middle: V, deviation: V) -> V:
    return (x - middle) / deviation


def denoised(noise: V, x: V, inverse: V, factor: V) -> V:
    """The clean action x / alpha - noise sigma / alpha; inverse = 1 / alpha, factor = sigma /
    alpha.
    """
    # x0 = (x - sigma noise) / alpha (arXiv 2211.01095), without a division in the inner loop.
    return x * inverse - noise * factor


def clean(noise: V, x: V, inverse: V, factor: V) -> V:
    """The clean action within the bounds."""
    return within_bounds(denoised(noise, x, inverse, factor))


def noise_of_velocity(velocity: V, x: V, alpha: V, sigma: V) -> V:
    """The noise alpha v + sigma x in x = alpha a + sigma noise, where v = alpha noise - sigma a and
    alpha^2 + sigma^2 = 1 (arXiv 2202.00512, appendix D).
    """
    return velocity * alpha + x * sigma


def add(x: V, *others: V) -> V:
    for other in others:
        x = x + other
    return x


def fourier(t: Tensor, frequencies: Tensor) -> Tensor:
    """(sin, cos) of the first number of t (..., n) times the frequencies."""
    # The frequencies hold 2 pi and the scale already. Of the time features the first is t: (...,
    # 1) * (F / 2) -> (..., F / 2).
    angles = t[..., :1] * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


def concat(*inputs: Tensor) -> Tensor:
    # torch.cat does not broadcast, and a state is often (B, 1, F) beside actions (B, K, A).
    if len({x.shape[:-1] for x in inputs}) > 1:
        shape = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
        inputs = tuple(x.expand(*shape, x.shape[-1]) for x in inputs)
    return torch.cat(inputs, dim=-1)


def columns_of(x: Tensor, start: int, stop: int) -> Tensor:
    return x[..., start:stop]


def linear(*values: Tensor) -> Tensor:
    """x_1 W_1 + ... + x_n W_n, plus b where the number of values is odd: x_1, ..., x_n, W_1, ...,
    W_n, b. x (*members, *batch, in), W (*members, in, out), b broadcasts against the sum.
    """
    count = len(values) // 2
    inputs, weights, rest = values[:count], values[count : 2 * count], values[2 * count :]
    weight = weights[0]
    vectors = weight.numel() // weight.shape[-2]  # numbers of one b for each member
    # The fused kernels take one b per member. A b with batch axes, one row per state, is added.
    if count == 1 and rest and rest[0].numel() == vectors:
        return _affine(inputs[0], weight, rest[0])
    # [x_1, ..., x_n] W = sum_i x_i W_i: nothing is concatenated, and an x_i that is shared along a
    # batch axis is multiplied once, before the sum broadcasts it.
    products = [_matmul(x, w) for x, w in zip(inputs, weights, strict=True)]
    return add(*products, *rest)


def _matmul(x: Tensor, weight: Tensor) -> Tensor:
    """(*members, *batch, in) times (*members, in, out)."""
    members = weight.shape[:-2]
    if not members:
        return x @ weight
    rank, count = len(members), math.prod(members)
    # A member axis of 1, an input that all members share, is widened; bmm takes one batch axis.
    x = x.expand(*members, *x.shape[rank:])
    y = torch.bmm(x.reshape(count, -1, x.shape[-1]), weight.reshape(count, *weight.shape[-2:]))
    return y.reshape(*x.shape[:-1], weight.shape[-1])


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`_matmul` plus the bias (*members, 1, ..., out), fused where there is a kernel for it."""
    members = weight.shape[:-2]
    if not members:
        # functional.linear wants (out, in); .mT is a view, so nothing is copied.
        return functional.linear(x, weight.mT, bias.flatten())
    rank, count = len(members), math.prod(members)
    x = x.expand(*members, *x.shape[rank:])
    # (M, 1, out) + (M, N, in) (M, in, out) -> (M, N, out), N all batch axes in one.
    y = torch.baddbmm(
        bias.reshape(count, 1, -1),
        x.reshape(count, -1, x.shape[-1]),
        weight.reshape(count, *weight.shape[-2:]),
    )
    return y.reshape(*x.shape[:-1], weight.shape[-1])


def _through_linear(
    target: Target[W],
    gradient: W,
    parameters: Sequence[Tensor],
    index: int,
    columns: tuple[int, int],
) -> W:
    # y = sum_i x_i W_i + b gives dL/dx_i = dL/dy W_i^T: another linear, so engines need no new
    # operation.
    size = columns[1] - columns[0]
    return target.emit("linear", (gradient,), size, (parameters[index].mT,))


def _through_concat(
    target: Target[W],
    gradient: W,
    parameters: Sequence[Tensor],
    index: int,
    columns: tuple[int, int],
) -> W:
    # Each input of a concatenation gets its own columns of the gradient back.
    return target.emit("slice", (gradient,), columns[1] - columns[0], columns=columns)


def _through_add(
    target: Target[W],
    gradient: W,
    parameters: Sequence[Tensor],
    index: int,
    columns: tuple[int, int],
) -> W:
    # d(x + y)/dx = 1. Axes along which x was broadcast are not summed.
    return gradient


OPERATIONS: dict[str, Operation] = {
    "linear": Operation(inputs=1, torch=linear, gradient=_through_linear, rank=2),
    "concat": Operation(inputs=2, torch=concat, gradient=_through_concat),
    "slice": Operation(inputs=1, torch=columns_of),
    "add": Operation(inputs=2, formula=add, gradient=_through_add),
    "relu": Operation(
        inputs=1,
        formula=relu,
        backward=Operation(inputs=2, formula=relu_backward),
    ),
    "silu": Operation(
        inputs=1,
        formula=silu,
        torch=functional.silu,
        backward=Operation(
            inputs=2,
            formula=silu_backward,
            torch=silu_backward_torch,
            fast=torch.ops.aten.silu_backward.default,
        ),
    ),
    "layer_norm": Operation(
        inputs=1,
        parameters=2,
        formula=layer_norm,
        torch=layer_norm_torch,
        fast=layer_norm_fast,
        onnx=layer_norm_onnx,
        backward=Operation(inputs=2, parameters=1, formula=layer_norm_backward),
    ),
    "velocity": Operation(inputs=4, formula=noise_of_velocity),
    "denoised": Operation(inputs=4, formula=denoised),
    "clean": Operation(inputs=4, formula=clean),
    "standardize": Operation(inputs=1, parameters=2, formula=standardize),
    # Of time alone, so that it is a constant before an engine other than tensors could meet it.
    "fourier": Operation(inputs=1, parameters=1, torch=fourier),
}


def operation(name: str) -> Operation:
    """The entry of a name; that of "silu_backward" is the `backward` of "silu". Raises NotCovered,
    naming it, where there is none.
    """
    base = name.removesuffix(BACKWARD)
    if base not in OPERATIONS:
        raise NotCovered(
            f"not covered: the operation {name!r}: state it in OPERATIONS of "
            f"{__name__}, which knows {', '.join(sorted(OPERATIONS))}"
        )
    found = OPERATIONS[base]
    if base == name:
        return found
    if found.backward is None:
        raise NotCovered(f"not covered: {name}, because {base!r} states no backward formula")
    return found.backward


def formulas() -> dict[str, Operation]:
    """Every operation that is a formula, the backward ones included."""
    every = {
        name + suffix: form
        for name, found in OPERATIONS.items()
        for suffix, form in (("", found), (BACKWARD, found.backward))
        if form is not None
    }
    return {name: form for name, form in every.items() if form.formula is not None}


def check_activation(name: str) -> str:
    """Raises ValueError for what is no function of one value in the table."""
    known = sorted(name for name, found in OPERATIONS.items() if found.activation)
    if name not in known:
        raise ValueError(f"expected an activation, one of {', '.join(known)}; got {name!r}")
    return name
