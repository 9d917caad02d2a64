"""A third-party backend and extractor: found by their entry points, checked by `ddice.testing`."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec
from ddice.dice_backends.base import RatioKind
from ddice.dice_backends.diagnostics import ratio_metrics
from ddice.dice_backends.value_only import ValueOnly, ValueOnlyConfig
from ddice.diffusion.prior import Prior
from ddice.diffusion.samplers import Gaussian, GaussianSampler
from ddice.extractors import Extractor, ExtractorConfig
from ddice.parts.part import Optimizer, average, weighted_mean


class AdvantageWeighted(ValueOnlyConfig):
    """V by temporal differences, ratio exp(advantage / temperature): advantage-weighted
    regression behind ddice's interface.
    """

    kind: Literal["advantage_weighted"] = "advantage_weighted"
    clip: float = Field(5.0, gt=0, description="largest log ratio")

    def build(self, spec: Spec, seed: Seed = 0) -> _Weighted:
        return _Weighted(self, spec, seed)


class _Weighted(ValueOnly):
    config: AdvantageWeighted
    ratio_kind: ClassVar[RatioKind] = "action"

    def _advantage(self, batch: Batch) -> Tensor:
        following = self.target(self.encoder(batch.next_observations)).squeeze(-1).detach()
        return self.bootstrap(batch, following) - self.value(batch.observations)

    def _log_ratio(self, advantage: Tensor) -> Tensor:
        return self.scaled(advantage.detach()).clamp(max=self.config.clip)

    def log_ratio(self, batch: Batch) -> Tensor:
        return self._log_ratio(self._advantage(batch))

    def update(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        advantage = self._advantage(batch)
        v_loss = weighted_mean(advantage.square(), batch.weights)
        head_loss, metrics = self.head_loss(
            self.encoder(batch.observations), batch.actions, advantage, batch.weights
        )
        self.descend(v_loss + head_loss, step)
        average(self.target, self.value_network, self.config.polyak)
        return {
            "v_loss": v_loss.detach(),
            **metrics,
            **ratio_metrics(self._log_ratio(advantage), batch.weights),
        }


class FilteredBC(ExtractorConfig):
    """A Gaussian that clones the actions whose ratio is above the mean, and no others."""

    kind: Literal["filtered_bc"] = "filtered_bc"
    gaussian: Gaussian = Gaussian()
    optimizer: Optimizer = Optimizer()

    needs_prior = False

    def build(self, spec: Spec, seed: Seed = 0, prior: Prior | None = None) -> _Filtered:
        return _Filtered(self, spec, seed)


class _Filtered(Extractor):
    config: FilteredBC

    def __init__(self, config: FilteredBC, spec: Spec, seed: Seed):
        super().__init__(config, config.optimizer, 256, spec, seed, None)
        self.model = config.gaussian.build(spec, seed)

    def update(
        self, batch: Batch, *, step: int, log_ratio: Tensor | None = None
    ) -> dict[str, Tensor]:
        if log_ratio is None:
            raise ValueError("FilteredBC needs log_ratio")
        kept = torch.where(
            log_ratio > self.follow_mean(log_ratio, batch.weights, step)[..., None],
            batch.weights,
            0,
        )
        loss = (-kept * self.model.log_density(batch.observations, batch.actions)).sum(
            -1
        ) / batch.weights.sum(-1)
        self.descend(loss, step)
        return {"loss": loss.detach(), "kept": (kept.sum(-1) / batch.weights.sum(-1))}

    def sampler(self) -> GaussianSampler:
        return self.model
