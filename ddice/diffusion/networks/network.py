"""Networks: plans with their parameters.

Every weight is (*members, in, out) and every input (*members, *batch, in); a member axis of an
input may be 1 (shared by all members), and inputs of one network may broadcast against each other
over the batch axes: features (B, 1, F) beside actions (B, K, A) cost the state once. Members serve
ensembles and several seeds trained together: the axis of the seeds, if any, comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ddice.core.randomness import Seed, rand, randn, seed_shape
from ddice.diffusion.networks.plan import Layer, OnTensors, run_backward, run_forward
from ddice.diffusion.networks.training import run

Initialisation = Literal["uniform", "kaiming"]


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
        # (*seeds, *own): random draws add the axis of the seeds themselves and take `_own`;
        # constants such as zeros take `members`.
        self.members = (*seed_shape(seed), *members)
        self._seed = seed
        self._stream = stream
        self._own = members
        self._initialisation = initialisation
        self._steps: list[tuple[str, tuple[str, ...], str]] = []

    def _add(
        self,
        op: str,
        inputs: tuple[str, ...],
        size: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> str:
        # Names of saved tensors: another order of layers is another file format.
        name = f"{op}_{len(self._steps)}"
        if weight is not None:
            # Frequencies stay as drawn, as published, and are saved with the weights.
            trained = nn.Parameter(weight, requires_grad=op != "fourier")
            self.register_parameter(f"{name}_weight", trained)
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
        # A stream per position, so a layer's weights depend on no draw of another layer.
        stream = f"{self._stream}/linear/{len(self._steps)}"
        shape = (*self._own, fan_in, outputs)
        if self._initialisation == "kaiming":
            # He et al., arXiv 1502.01852: the 2 makes up for the half of the variance that a ReLU
            # removes, so that signals keep their size through the layers.
            weight = randn(self._seed, stream, 0, shape) * math.sqrt(2 / fan_in)
            bias = torch.zeros(*self.members, outputs, dtype=torch.float32, device="cpu")
        else:
            # The variance is 1 / (3 in). torch.nn.Linear names it Kaiming uniform with a = sqrt(5),
            # which is the same bound.
            bound = 1 / math.sqrt(fan_in)
            weight = (2 * rand(self._seed, stream, 0, shape) - 1) * bound
            bias = (2 * rand(self._seed, stream, 1, (*self._own, outputs)) - 1) * bound
        return self._add("linear", inputs, outputs, weight, bias)

    def layer_norm(self, x: str) -> str:
        shape = (*self.members, self.sizes[x])
        gain = torch.ones(shape, dtype=torch.float32, device="cpu")
        shift = torch.zeros(shape, dtype=torch.float32, device="cpu")
        return self._add("layer_norm", (x,), self.sizes[x], gain, shift)

    def fourier(self, time: str, size: int, scale: float) -> str:
        """(sin, cos) of 2 pi W t with frozen W ~ N(0, scale^2), `size` numbers."""
        shape = (*self._own, size // 2)
        # Random Fourier features, arXiv 2006.10739: sin and cos share one frequency, hence
        # size / 2. 2 pi is folded into the weight.
        weight = 2 * math.pi * scale * randn(self._seed, f"{self._stream}/fourier", 0, shape)
        return self._add("fourier", (time,), size, weight)

    def activation(self, x: str, kind: str) -> str:
        return self._add(kind, (x,), self.sizes[x])

    def add(self, x: str, y: str) -> str:
        return self._add("add", (x, y), self.sizes[x])

    def concat(self, inputs: tuple[str, ...]) -> str:
        return self._add("concat", inputs, sum(self.sizes[name] for name in inputs))

    def plan(self) -> list[Layer]:
        """The layers in order, with their live parameters."""
        # Not by attribute, which asks a module's tables one after the other, some 40 times a plan.
        parameters = self._parameters
        return [
            Layer(
                op,
                inputs,
                name,
                tuple(self.sizes[given] for given in inputs),
                self.sizes[name],
                parameters.get(f"{name}_weight"),
                parameters.get(f"{name}_bias"),
            )
            for op, inputs, name in self._steps
        ]

    def _named(self, inputs: Sequence[Tensor]) -> tuple[dict[str, Tensor], int]:
        """The inputs by name, and the number of their batch axes."""
        if len(inputs) != len(self.inputs):
            raise TypeError(f"expected the inputs {self.inputs}, got {len(inputs)} tensors")
        # Axes of the widest input, less members and the last one.
        batch = max(x.ndim for x in inputs) - len(self.members) - 1
        return dict(zip(self.inputs, inputs, strict=True)), batch

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs (*members, *batch, in_i) in the order of `self.inputs` -> (*members, *batch,
        out).
        """
        named, batch = self._named(inputs)
        return run(self.plan(), named, self.members, batch)

    def value_and_gradient(self, *inputs: Tensor, wrt: str) -> tuple[Tensor, Tensor]:
        """The sum over outputs, (*members, *batch), and its gradient in the input `wrt`,
        (*members, *batch, in): by hand, without autograd.
        """
        named, batch = self._named(inputs)
        plan, target = self.plan(), OnTensors(batch)
        values = run_forward(plan, named, target)
        output = values[plan[-1].output]
        # Seeding with ones gives the gradient of the sum over outputs. Rows do not mix, so it is
        # one gradient per row, not summed over axes along which the input was broadcast.
        gradient = run_backward(plan, values, torch.ones_like(output), wrt, target)
        # The output does not read `wrt`, so the gradient is 0 rather than an error.
        if gradient is None:
            gradient = torch.zeros_like(values[wrt])
        return output.sum(-1), gradient
