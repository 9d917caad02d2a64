"""A score network from outside: a plain multilayer perceptron with one skip."""

from typing import Literal

from pydantic import Field

from ddice.core.randomness import Seed
from ddice.diffusion.networks import TIME_FEATURES, Network, Score


class PlainScore(Score):
    """Two affine maps of everything, added."""

    kind: Literal["plain"] = "plain"
    width: int = Field(16, ge=1)

    def build(self, features: int, actions: int, *, seed: Seed, stream: str) -> Network:
        inputs = {"features": features, "actions": actions, "time": TIME_FEATURES}
        network = Network(inputs, seed=seed, stream=stream)
        hidden = network.activation(network.linear(tuple(inputs), self.width), "silu")
        network.add(network.linear(hidden, actions), network.linear("actions", actions))
        return network
