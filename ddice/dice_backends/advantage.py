"""The advantage head: e(s, a) = E[r + gamma V(s')] - V(s) by regression on clipped targets."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.config import Config
from ddice.diffusion.networks import MLP
from ddice.parts.part import weighted_mean


class AdvantageHead(Config):
    """Members that regress e(s, a) = r + gamma V(s') - V(s), so that Q = V + e ranks new
    actions; targets are clipped to resist outliers.
    """

    network: MLP = MLP()
    members: int = Field(2, ge=1)
    clip_deviations: float = Field(
        6.0,
        gt=0,
        description="targets further than this many deviations from their mean are clipped",
    )


def clipped_targets(targets: Tensor, weights: Tensor, deviations: float) -> tuple[Tensor, Tensor]:
    """Targets (*seeds, B) clipped to mean +- deviations * std of the batch, and the share that
    was.
    """
    mean = weighted_mean(targets, weights)[..., None]
    reach = deviations * weighted_mean((targets - mean).square(), weights).sqrt()[..., None]
    clipped = torch.clamp(targets, mean - reach, mean + reach)
    return clipped, weighted_mean((clipped != targets).to(targets.dtype), weights)
