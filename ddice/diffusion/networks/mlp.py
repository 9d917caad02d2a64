"""Multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from ddice.core.config import Config
from ddice.core.randomness import Seed
from ddice.diffusion.networks.network import Initialisation, Network
from ddice.diffusion.networks.operations import check_activation

Activation = Annotated[str, AfterValidator(check_activation)]
"""The name of an operation of one value."""

Width = Annotated[int, Field(ge=1)]


class MLP(Config):
    """A multilayer perceptron; `hidden=()` is an affine map."""

    hidden: tuple[Width, ...] = Field((256, 256), description="widths of the hidden layers")
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
            # Before the activation; never on the output, whose scale must be free.
            x = network.layer_norm(x) if self.layer_norm else x
            x = network.activation(x, self.activation)
        return network.linear(x, outputs)
