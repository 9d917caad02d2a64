"""A backend from outside: V is an expectile of r + gamma V(s'), the ratio exp(advantage)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec
from ddice.dice_backends import ratio_metrics
from ddice.dice_backends.value_only import AveragedValueBackend, AveragedValueConfig
from ddice.parts.part import average, weighted_mean


class Expectile(AveragedValueConfig):
    """Implicit V-learning without a critic (after arXiv 2110.06169)."""

    kind: Literal["expectile"] = "expectile"
    expectile: float = Field(0.8, gt=0, lt=1)
    largest_log_ratio: float = Field(4.6, gt=0)

    def build(self, spec: Spec, seed: Seed = 0) -> "ExpectileBackend":
        return ExpectileBackend(self, spec, seed)


class ExpectileBackend(AveragedValueBackend):
    config: Expectile
    ratio_kind: ClassVar[Literal["action", "state-action"]] = "action"

    def _advantage(self, batch: Batch) -> Tensor:
        following = self.target(self.encoder(batch.next_observations)).squeeze(-1).detach()
        return self.bootstrap(batch, following) - self.value(batch.observations)

    def _log_ratio(self, advantage: Tensor) -> Tensor:
        return self.scaled(advantage.detach()).clamp(max=self.config.largest_log_ratio)

    def log_ratio(self, batch: Batch) -> Tensor:
        return self._log_ratio(self._advantage(batch))

    def update(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        advantage = self._advantage(batch)
        asymmetry = torch.where(advantage < 0, 1 - self.config.expectile, self.config.expectile)
        v_loss = weighted_mean(asymmetry * advantage.square(), batch.weights)
        features = self.encoder(batch.observations)
        head_loss, metrics = self.head_loss(features, batch.actions, advantage, batch.weights)
        self.descend(v_loss + head_loss, step)
        average(self.target, self.value_network, self.config.polyak)
        ratios = ratio_metrics(self._log_ratio(advantage), batch.weights)
        return {"v_loss": v_loss.detach(), **metrics, **ratios}
