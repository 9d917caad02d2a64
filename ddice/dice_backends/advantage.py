"""The advantage head: e(s, a) = E[r + gamma V(s')] - V(s) by regression on clipped targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.dice_backends.q_function import SCORES_ACTIONS
from ddice.dice_backends.selector import Selector
from ddice.diffusion.networks import MLP, Network
from ddice.parts.part import weighted_mean


class AdvantageHead(Selector):
    """Members that regress e(s, a) = r + gamma V(s') - V(s), so that Q = V + e ranks new
    actions; targets are clipped to resist outliers.
    """

    kind: Literal["advantage"] = "advantage"
    network: MLP = SCORES_ACTIONS
    members: int = Field(2, ge=1)
    clip_deviations: float = Field(
        6.0,
        gt=0,
        description="targets further than this many deviations from their mean are clipped",
    )

    adds_value: ClassVar[bool] = True

    def network_of(self, critic: MLP) -> MLP:
        return self.network

    def build(self, critic: MLP, inputs: Mapping[str, int], seed: Seed) -> Network:
        return self.head(inputs, seed)

    def head(self, inputs: Mapping[str, int], seed: Seed) -> Network:
        """e(s, a) for each member, untrained."""
        return self.network.build(inputs, 1, seed=seed, stream="advantage", members=(self.members,))

    def targets(
        self, q_targets: Tensor, values: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """r + gamma V(s') - V(s), clipped."""
        # e = (r + gamma V(s')) - V(s): small differences between actions, without the scale of V,
        # which a network for Q would have to fit first.
        targets, clip_rate = clipped_targets(q_targets - values, weights, self.clip_deviations)
        return targets, {"advantage_clip_rate": clip_rate}


def clipped_targets(targets: Tensor, weights: Tensor, deviations: float) -> tuple[Tensor, Tensor]:
    """Targets (*seeds, B) clipped to mean +- deviations * std of the batch, and the share that
    was.
    """
    # Clip to mean +- k std, (*seeds, 1) each. The square in the loss would let a few outliers,
    # such as terminal penalties, outweigh the ranking of all the other actions.
    mean = weighted_mean(targets, weights)[..., None]
    reach = deviations * weighted_mean((targets - mean).square(), weights).sqrt()[..., None]
    clipped = torch.clamp(targets, mean - reach, mean + reach)
    return clipped, weighted_mean((clipped != targets).to(targets.dtype), weights)
