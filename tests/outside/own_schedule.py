"""A noise schedule from outside: the cosine."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.diffusion.schedule import NoiseSchedule


class Cosine(NoiseSchedule):
    """alpha(t) = cos(reach pi t / 2), sigma(t) = sin(reach pi t / 2) (after arXiv 2102.09672)."""

    kind: Literal["cosine"] = "cosine"
    reach: float = Field(0.99, gt=0, lt=1, description="below 1, so that alpha(1) is positive")

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(torch.cos(self.reach * math.pi / 2 * t))

    def time(self, log_snr: Tensor) -> Tensor:
        return 2 / (self.reach * math.pi) * torch.atan(torch.exp(-log_snr))
