"""From observations to the features that all networks read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ddice.core.config import Config
from ddice.core.plugins import Door
from ddice.diffusion.networks.operations import standardize


class EncoderConfig(Config, abstract=True):
    """How observations become features. One of your own gives a `kind` and `build`."""

    kind: str

    @abstractmethod
    def build(self, mean: Sequence[float], std: Sequence[float]) -> Encoder:
        """The encoder of flat observations with these statistics; its parameters, if any, are
        always the same at first.
        """


class Encoder(nn.Module, ABC):
    """Observations -> the features that all networks read. One of your own gives `size` and
    `forward`; the engine "reference" plays it, and the others refuse it by name.
    """

    size: int  # F, the number of features

    @abstractmethod
    def forward(
        self,
        observations: Tensor,  # (..., S)
    ) -> Tensor:  # (..., F)
        """The features."""


class FlattenEncoder(EncoderConfig):
    """Features = (flat observation - mean) / std with the dataset's frozen statistics, or the
    flat observation itself.
    """

    kind: Literal["flatten"] = "flatten"
    normalize: bool = True

    def build(self, mean: Sequence[float], std: Sequence[float]) -> Encoder:
        size = len(mean)
        middle = mean if self.normalize else [0.0] * size
        deviation = std if self.normalize else [1.0] * size
        return StandardEncoder(
            torch.tensor(middle, dtype=torch.float32, device="cpu"),
            torch.tensor(deviation, dtype=torch.float32, device="cpu"),
        )


class StandardEncoder(Encoder):
    """(observation - mean) / std, without parameters."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        # Buffers (S,): they move and are saved with the policy, and no optimizer sees them.
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.size = mean.shape[-1]

    def forward(self, observations: Tensor) -> Tensor:
        return standardize(observations, self.mean, self.std)


AnyEncoder = Annotated[FlattenEncoder | EncoderConfig, Door("ddice.encoders")]
