"""Networks as plans: a list of layers, written once, that runs forwards, backwards by hand, and
inside other engines.

Every weight is (*members, in, out) and every input (*members, *batch, in); a member axis of an
input may be 1 (shared by all members), and inputs of one network may broadcast against each other
over the batch axes: features (B, 1, F) beside actions (B, K, A) cost the state once. Members serve
ensembles and several seeds trained together: the axis of the seeds, if any, comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ddice.core.config import Config
from ddice.core.randomness import Seed, rand, randn, seed_shape

Activation = Literal["relu", "silu"]
Operation = Literal["linear", "layer_norm", "fourier", "add", "concat", "relu", "silu"]
Initialisation = Literal["uniform", "kaiming"]
TIME_FEATURES = 4  # (t, log_snr / 5, alpha, sigma): what a noise schedule tells a network
NORM_EPS = 1e-5


class Layer(NamedTuple):
    """One step of a plan: `output` = op(`inputs`), by name. A "linear" of several inputs acts on
    their concatenation.
    """

    op: Operation
    inputs: tuple[str, ...]
    output: str
    weight: Tensor | None = None
    bias: Tensor | None = None


def _along(parameter: Tensor, rank: int, trailing: int = 1) -> Tensor:
    """(*members, ..., n) -> the same with 1s after the members, so that it broadcasts against a
    tensor of `rank` axes.
    """
    members = parameter.shape[:-trailing]
    return parameter.reshape(
        *members, *(1,) * (rank - parameter.ndim), *parameter.shape[-trailing:]
    )


def _matmul(x: Tensor, weight: Tensor) -> Tensor:
    """(*members, *batch, in) times (*members, in, out)."""
    members = weight.shape[:-2]
    if not members:
        return x @ weight
    rank, count = len(members), math.prod(members)
    x = x.expand(*members, *x.shape[rank:])
    y = torch.bmm(x.reshape(count, -1, x.shape[-1]), weight.reshape(count, *weight.shape[-2:]))
    return y.reshape(*x.shape[:-1], weight.shape[-1])


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`_matmul` plus the bias (*members, out), fused where there is a kernel for it."""
    members = weight.shape[:-2]
    if not members:
        return functional.linear(x, weight.mT, bias)
    rank, count = len(members), math.prod(members)
    x = x.expand(*members, *x.shape[rank:])
    y = torch.baddbmm(
        bias.reshape(count, 1, -1),
        x.reshape(count, -1, x.shape[-1]),
        weight.reshape(count, *weight.shape[-2:]),
    )
    return y.reshape(*x.shape[:-1], weight.shape[-1])


def normalise(x: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + NORM_EPS) over the last axis."""
    return functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def normalise_backward(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in x, from the gradient in `normalise(x)`."""
    centred = x - x.mean(-1, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + NORM_EPS)
    normal = centred * inverse
    return inverse * (
        gradient
        - gradient.mean(-1, keepdim=True)
        - normal * (gradient * normal).mean(-1, keepdim=True)
    )


def fourier(t: Tensor, frequencies: Tensor) -> Tensor:
    """(sin, cos) of the first number of t (..., n) times the frequencies."""
    angles = t[..., :1] * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class Network(nn.Module):
    """A plan with its parameters. Builder methods add layers and return the name of their
    output; the last one is the network's output.
    """

    def __init__(
        self,
        inputs: Mapping[str, int],
        *,
        seed: Seed,
        stream: str,
        members: tuple[int, ...] = (),
        initialisation: Initialisation = "uniform",
    ):
        super().__init__()
        self.inputs = tuple(inputs)
        self.sizes = dict(inputs)
        self.members = (*seed_shape(seed), *members)
        self._seed, self._stream, self._own, self._initialisation = (
            seed,
            stream,
            members,
            initialisation,
        )
        self._steps: list[tuple[Operation, tuple[str, ...], str]] = []

    def _add(
        self,
        op: Operation,
        inputs: tuple[str, ...],
        size: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> str:
        name = f"{op}_{len(self._steps)}"
        if weight is not None:
            self.register_parameter(
                f"{name}_weight", nn.Parameter(weight, requires_grad=op != "fourier")
            )
        if bias is not None:
            self.register_parameter(f"{name}_bias", nn.Parameter(bias))
        self._steps.append((op, inputs, name))
        self.sizes[name] = size
        return name

    def linear(self, inputs: str | tuple[str, ...], outputs: int) -> str:
        """An affine layer on the concatenation of its inputs. "uniform": U(-1, 1)/sqrt(in),
        PyTorch's own; "kaiming": N(0, 2/in), bias 0.
        """
        inputs = (inputs,) if isinstance(inputs, str) else inputs
        fan_in = sum(self.sizes[name] for name in inputs)
        stream = f"{self._stream}/linear/{len(self._steps)}"
        shape, bias_shape = (*self._own, fan_in, outputs), (*self._own, outputs)
        if self._initialisation == "kaiming":
            weight, bias = (
                randn(self._seed, stream, 0, shape) * math.sqrt(2 / fan_in),
                torch.zeros(*self.members, outputs, dtype=torch.float32, device="cpu"),
            )
        else:
            bound = 1 / math.sqrt(fan_in)
            weight, bias = (
                (2 * rand(self._seed, stream, i, s) - 1) * bound
                for i, s in enumerate((shape, bias_shape))
            )
        return self._add("linear", inputs, outputs, weight, bias)

    def layer_norm(self, x: str) -> str:
        shape = (*self.members, self.sizes[x])
        return self._add(
            "layer_norm",
            (x,),
            self.sizes[x],
            torch.ones(shape, dtype=torch.float32, device="cpu"),
            torch.zeros(shape, dtype=torch.float32, device="cpu"),
        )

    def fourier(self, time: str, size: int, scale: float) -> str:
        """(sin, cos) of 2 pi W t with frozen W ~ N(0, scale^2), `size` numbers."""
        weight = (
            2
            * math.pi
            * scale
            * randn(self._seed, f"{self._stream}/fourier", 0, (*self._own, size // 2))
        )
        return self._add("fourier", (time,), size, weight)

    def activation(self, x: str, kind: Activation) -> str:
        return self._add(kind, (x,), self.sizes[x])

    def add(self, x: str, y: str) -> str:
        return self._add("add", (x, y), self.sizes[x])

    def concat(self, inputs: tuple[str, ...]) -> str:
        return self._add("concat", inputs, sum(self.sizes[name] for name in inputs))

    def plan(self) -> list[Layer]:
        """The layers in order, with their live parameters."""
        return [
            Layer(
                op,
                inputs,
                name,
                getattr(self, f"{name}_weight", None),
                getattr(self, f"{name}_bias", None),
            )
            for op, inputs, name in self._steps
        ]

    def _linear(self, layer: Layer, values: Mapping[str, Tensor]) -> Tensor:
        assert layer.weight is not None
        assert layer.bias is not None
        if len(layer.inputs) == 1:
            return _affine(values[layer.inputs[0]], layer.weight, layer.bias)
        weights = layer.weight.split([self.sizes[name] for name in layer.inputs], dim=-2)
        first, *others = [
            _matmul(values[name], w) for name, w in zip(layer.inputs, weights, strict=True)
        ]
        for other in others:
            first = first + other
        return first + _along(layer.bias, first.ndim)

    def _run(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        if len(inputs) != len(self.inputs):
            raise TypeError(f"expected the inputs {self.inputs}, got {len(inputs)} tensors")
        values = dict(zip(self.inputs, inputs, strict=True))
        for layer in self.plan():
            x = values[layer.inputs[0]]
            if layer.op == "linear":
                y = self._linear(layer, values)
            elif layer.op == "layer_norm":
                assert layer.weight is not None
                assert layer.bias is not None
                y = normalise(x) * _along(layer.weight, x.ndim) + _along(layer.bias, x.ndim)
            elif layer.op == "fourier":
                assert layer.weight is not None
                y = fourier(x, _along(layer.weight, x.ndim))
            elif layer.op == "add":
                y = x + values[layer.inputs[1]]
            elif layer.op == "concat":
                y = torch.cat([values[name] for name in layer.inputs], dim=-1)
            else:
                y = torch.relu(x) if layer.op == "relu" else functional.silu(x)
            values[layer.output] = y
        return values

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs (*members, *batch, in_i) in the order of `self.inputs` -> (*members, *batch,
        out).
        """
        return self._run(inputs)[self._steps[-1][2]]

    def value_and_gradient(self, *inputs: Tensor, wrt: str) -> tuple[Tensor, Tensor]:
        """The sum over outputs, (*members, *batch), and its gradient in the input `wrt`,
        (*members, *batch, in): by hand, without autograd.
        """
        values = self._run(inputs)
        output = values[self._steps[-1][2]]
        gradients = {self._steps[-1][2]: torch.ones_like(output)}
        depends = {wrt}
        for _, names, name in self._steps:
            if depends & set(names):
                depends.add(name)
        for layer in reversed(self.plan()):
            if layer.output not in gradients:
                continue
            gradient = gradients.pop(layer.output)
            start = 0
            for name in layer.inputs:
                columns = slice(start, start + self.sizes[name])
                start = columns.stop
                if name in depends:
                    local = _backward(layer, values[name], gradient, columns)
                    gradients[name] = gradients[name] + local if name in gradients else local
        return output.sum(-1), gradients[wrt]


def _backward(layer: Layer, x: Tensor, gradient: Tensor, columns: slice) -> Tensor:
    """The gradient in one input x of one layer, from the gradient in its output; `columns` is
    where x stands among concatenated inputs.
    """
    if layer.op == "linear":
        assert layer.weight is not None
        return _matmul(gradient, layer.weight[..., columns, :].mT)
    if layer.op == "concat":
        return gradient[..., columns]
    if layer.op == "silu":
        gate = torch.sigmoid(x)
        return gradient * gate * (1 + x * (1 - gate))
    if layer.op == "relu":
        return gradient * (x > 0)
    if layer.op == "layer_norm":
        assert layer.weight is not None
        return normalise_backward(x, gradient * _along(layer.weight, x.ndim))
    if layer.op == "add":
        return gradient
    raise ValueError(
        f"no gradient is written for a {layer.op!r} layer: only for linear, layer_norm, add, "
        "concat, relu and silu"
    )


class MLP(Config):
    """A multilayer perceptron; `hidden=()` is an affine map."""

    hidden: tuple[int, ...] = Field((256, 256), description="widths of the hidden layers")
    activation: Activation = "relu"
    layer_norm: bool = Field(False, description="normalise after every hidden affine layer")
    initialisation: Initialisation = "uniform"

    def build(
        self,
        inputs: Mapping[str, int],
        outputs: int,
        *,
        seed: Seed,
        stream: str,
        members: tuple[int, ...] = (),
    ) -> Network:
        network = Network(
            inputs, seed=seed, stream=stream, members=members, initialisation=self.initialisation
        )
        self.layers(network, tuple(inputs), outputs)
        return network

    def layers(self, network: Network, inputs: tuple[str, ...], outputs: int) -> str:
        """Append the layers to a network that exists; the name of the output."""
        x: str | tuple[str, ...] = inputs
        for width in self.hidden:
            x = network.linear(x, width)
            x = network.layer_norm(x) if self.layer_norm else x
            x = network.activation(x, self.activation)
        return network.linear(x, outputs)


class SmoothTime(Config):
    """The four smooth features of the noise level as they are: no frequencies, so a network can
    learn to ignore time at first.
    """

    kind: Literal["smooth"] = "smooth"

    def layers(self, network: Network, time: str) -> str:
        return time


class FourierTime(Config):
    """Random Fourier features of t with frozen frequencies (the published choice)."""

    kind: Literal["fourier"] = "fourier"
    size: int = Field(32, ge=2, multiple_of=2)
    scale: float = Field(30.0, gt=0)

    def layers(self, network: Network, time: str) -> str:
        return network.fourier(time, self.size, self.scale)


Time = Annotated[SmoothTime | FourierTime, Field(discriminator="kind")]


class ResidualScore(Config):
    """A noise predictor of residual blocks x + W2 silu(W1 norm(x)) over an affine map of
    (actions, features, time).
    """

    kind: Literal["residual"] = "residual"
    width: int = Field(128, ge=1)
    blocks: int = Field(3, ge=1)
    time: Time = SmoothTime()

    def build(self, features: int, actions: int, *, seed: Seed, stream: str) -> Network:
        network = Network(
            {"features": features, "actions": actions, "time": TIME_FEATURES},
            seed=seed,
            stream=stream,
        )
        x = network.linear(("features", "actions", self.time.layers(network, "time")), self.width)
        for _ in range(self.blocks):
            inner = network.activation(network.linear(network.layer_norm(x), self.width), "silu")
            x = network.add(x, network.linear(inner, self.width))
        network.linear(network.activation(network.layer_norm(x), "silu"), actions)
        return network


class PublishedScore(Config):
    """The noise predictor of Diffusion-DICE: a residual U-net 512/256/128/128/256/512 over
    actions, given state and time; 1.63 M parameters.
    """

    kind: Literal["published"] = "published"
    widths: tuple[int, int, int] = (512, 256, 128)
    condition: int = Field(128, ge=1)
    embedding: int = Field(32, ge=1, description="size of the embeddings of state and of time")
    time: Time = FourierTime()

    def build(self, features: int, actions: int, *, seed: Seed, stream: str) -> Network:
        network = Network(
            {"features": features, "actions": actions, "time": TIME_FEATURES},
            seed=seed,
            stream=stream,
        )
        state = network.activation(network.linear("features", self.embedding), "silu")
        time = network.linear(self.time.layers(network, "time"), self.embedding)
        condition = network.linear(
            network.activation(network.linear((state, time), self.condition), "silu"),
            self.condition,
        )

        def block(x: str, width: int) -> str:
            shift = network.linear(network.activation(condition, "silu"), width)
            inner = network.add(network.activation(network.linear(x, width), "silu"), shift)
            inner = network.activation(network.linear(inner, width), "silu")
            return network.add(inner, x if network.sizes[x] == width else network.linear(x, width))

        first, second, third = self.widths
        down1 = block("actions", first)
        down2 = block(down1, second)
        down3 = block(down2, third)
        up = block(down3, third)
        up = block(network.concat((down3, up)), second)
        up = block(network.concat((down2, up)), first)
        network.linear((down1, up), actions)
        return network


Score = Annotated[ResidualScore | PublishedScore, Field(discriminator="kind")]


class FlattenEncoder(Config):
    """Features = (flat observation - mean) / std with the dataset's frozen statistics, or the
    flat observation itself.
    """

    kind: Literal["flatten"] = "flatten"
    normalize: bool = True

    def build(self, mean: Sequence[float], std: Sequence[float]) -> Encoder:
        size = len(mean)
        return Encoder(
            torch.tensor(
                mean if self.normalize else [0.0] * size, dtype=torch.float32, device="cpu"
            ),
            torch.tensor(
                std if self.normalize else [1.0] * size, dtype=torch.float32, device="cpu"
            ),
        )


class Encoder(nn.Module):
    """Observations (..., S) -> features (..., F). Without parameters today; everything reads
    features, so a learned encoder fits in here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.size = mean.shape[-1]

    def forward(self, observations: Tensor) -> Tensor:
        return (observations - self.mean) / self.std
