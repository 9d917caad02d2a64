"""What every sampler is: observations and noise in, K candidate actions out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddice.core.config import Config
from ddice.data import Spec


class SamplerConfig(Config, abstract=True):
    """How to build a sampler: kept with every saved policy. One of your own gives a `kind` and
    `build`.
    """

    kind: str

    @abstractmethod
    def build(self, spec: Spec) -> Sampler:
        """The sampler, untrained: its tensors are those of a saved policy's."""


class Sampler(nn.Module, ABC):
    """Candidates of a state. One of your own gives `config` and `forward`; the engine "reference"
    plays it, and the others refuse it by name.
    """

    config: SamplerConfig
    reads_noise: ClassVar[bool] = True  # without it all candidates of a state are the same

    @abstractmethod
    def forward(
        self,
        observations: Tensor,  # (B, S)
        noise: Tensor,  # (B, K, A)
    ) -> Tensor:  # (B, K, A)
        """Candidates, not yet mapped into the bounds; each from its own noise alone."""

    def latents(self, candidates: int, actions: int) -> Tensor:
        """The fixed noise (K, A) of deterministic acting: none in the first candidate, which is
        the middle of the policy (of a Gaussian, its mean).
        """
        # On the CPU, whatever the device of the policy: generators of devices draw other numbers
        # from the same seed, and a saved policy must act the same everywhere.
        source = torch.Generator("cpu").manual_seed(0)
        shape = (candidates, actions)
        noise = torch.randn(shape, generator=source, dtype=torch.float32, device="cpu")
        # One random number for all states would push every action of an episode the same way.
        noise[0] = 0
        return noise
