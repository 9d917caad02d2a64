"""A deterministic actor: one action per state."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Spec
from ddice.diffusion.networks import MLP, AnyEncoder, Encoder, FlattenEncoder, Network
from ddice.diffusion.samplers.base import Sampler, SamplerConfig


class Actor(SamplerConfig):
    """pi(s) = tanh(network(s)): one action, which lies within the bounds by tanh."""

    kind: Literal["actor"] = "actor"
    network: MLP = MLP()
    encoder: AnyEncoder = FlattenEncoder()

    def build(self, spec: Spec, seed: Seed = 0) -> ActorSampler:
        encoder = self.encoder.build(spec.normalizer.mean, spec.normalizer.std)
        network = self.network.build(
            {"features": encoder.size}, spec.actions.size, seed=seed, stream="actor"
        )
        return ActorSampler(self, encoder, network)


class ActorSampler(Sampler):
    """The action of a state, whatever the noise."""

    config: Actor
    reads_noise: ClassVar[bool] = False

    def __init__(self, config: Actor, encoder: Encoder, network: Network):
        super().__init__()
        self.config, self.encoder, self.network = config, encoder, network

    def actions(self, observations: Tensor) -> Tensor:
        """Observations (*seeds, B, S) -> actions (*seeds, B, A)."""
        return torch.tanh(self.network(self.encoder(observations)))

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Observations (B, S), noise (B, K, A) -> candidates (B, K, A), K times the same."""
        return self.actions(observations)[:, None].expand_as(noise)
