"""A third-party backend and extractor: found by their entry points, checked by `ddice.testing`."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec
from ddice.dice_backends import AdvantageHead, Backend, BackendConfig, QConfig, QFunction
from ddice.dice_backends.advantage import clipped_targets
from ddice.dice_backends.base import RatioKind
from ddice.dice_backends.diagnostics import ratio_metrics
from ddice.diffusion.samplers import Gaussian, GaussianSampler
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.extractors import Extractor, ExtractorConfig
from ddice.parts.part import Optimizer, average, weighted_mean


class AdvantageWeighted(BackendConfig):
    """V by temporal differences, ratio exp(advantage / temperature): advantage-weighted
    regression behind ddice's interface.
    """

    kind: Literal["advantage_weighted"] = "advantage_weighted"
    clip: float = Field(5.0, gt=0, description="largest log ratio")
    polyak: float = Field(0.005, gt=0, le=1, description="rate of the averaged copy of V")
    advantage: AdvantageHead = Field(AdvantageHead(), description="what makes Q = V + e(s, a)")

    def build(self, spec: Spec, seed: Seed = 0) -> AdvantageWeightedBackend:
        return AdvantageWeightedBackend(self, spec, seed)


class AdvantageWeightedBackend(Backend):
    config: AdvantageWeighted
    ratio_kind: ClassVar[RatioKind] = "action"

    def __init__(self, config: AdvantageWeighted, spec: Spec, seed: Seed):
        super().__init__(config, spec, seed)
        self.target = copy.deepcopy(self.value_network).requires_grad_(False)
        inputs = {"features": self.encoder.size, "actions": spec.actions.size}
        self.head = config.advantage.head(inputs, seed)

    @property
    def q(self) -> QFunction:
        head, value = self.config.advantage, self.config.value
        settings = QConfig(
            critic=head.network, members=head.members, value=value, encoder=self.config.encoder
        )
        return QFunction(settings, self.encoder, self.head, self.value_network)

    def _advantage(self, batch: Batch) -> Tensor:
        following = self.target(self.encoder(batch.next_observations)).squeeze(-1).detach()
        return self.bootstrap(batch, following) - self.value(batch.observations)

    def _log_ratio(self, advantage: Tensor) -> Tensor:
        return self.scaled(advantage.detach()).clamp(max=self.config.clip)

    def log_ratio(self, batch: Batch) -> Tensor:
        return self._log_ratio(self._advantage(batch))

    def _members(self, x: Tensor) -> Tensor:
        """With the axis of the members behind that of the seeds."""
        return x.unsqueeze(len(self.seed_shape))

    def update(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        features = self._members(self.encoder(batch.observations))
        advantage = self._advantage(batch)
        v_loss = weighted_mean(advantage.square(), batch.weights)
        targets, clip_rate = clipped_targets(
            advantage.detach(), batch.weights, self.config.advantage.clip_deviations
        )
        predicted = self.head(features, self._members(batch.actions)).squeeze(-1)
        errors = predicted - self._members(targets)
        head_loss = weighted_mean(errors.square(), self._members(batch.weights)).sum(-1)
        self.descend(v_loss + head_loss, step)
        average(self.target, self.value_network, self.config.polyak)
        metrics = ratio_metrics(self._log_ratio(advantage), batch.weights)
        self.adapt_temperature(metrics["effective_sample_size"])
        return {
            "v_loss": v_loss.detach(),
            "advantage_clip_rate": clip_rate,
            **metrics,
        }


class FilteredBC(ExtractorConfig):
    """A Gaussian that clones the actions whose ratio is above the mean, and no others."""

    kind: Literal["filtered_bc"] = "filtered_bc"
    gaussian: Gaussian = Gaussian()
    optimizer: Optimizer = Optimizer()

    needs_prior = False

    def build(
        self, spec: Spec, seed: Seed = 0, prior: TrainedPrior | None = None
    ) -> FilteredBCExtractor:
        return FilteredBCExtractor(self, spec, seed)


class FilteredBCExtractor(Extractor):
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
