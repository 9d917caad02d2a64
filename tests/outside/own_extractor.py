"""An extractor from outside: a Gaussian that clones the actions of above-average ratio alone."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec
from ddice.diffusion.networks import MLP
from ddice.diffusion.samplers import Gaussian, GaussianSampler
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.extractors import Extractor, SelectingConfig
from ddice.parts.part import Optimizer


class BestHalf(SelectingConfig):
    """-E[1(w > mean w) log pi(a | s)]."""

    kind: Literal["best_half"] = "best_half"
    network: MLP = MLP(hidden=(16,))
    batch_size: int = Field(16, ge=1)

    needs_prior: ClassVar[bool] = False

    def build(
        self, spec: Spec, seed: Seed = 0, prior: TrainedPrior | None = None
    ) -> "BestHalfPart":
        return BestHalfPart(self, spec, seed)


class BestHalfPart(Extractor):
    config: BestHalf

    def __init__(self, config: BestHalf, spec: Spec, seed: Seed):
        super().__init__(config, Optimizer(), config.batch_size, spec, seed, None)
        self.model = Gaussian(network=config.network).build(spec, seed)

    def update(
        self, batch: Batch, *, step: int, log_ratio: Tensor | None = None
    ) -> dict[str, Tensor]:
        if log_ratio is None:
            raise ValueError("BestHalf needs log_ratio=backend.log_ratio(batch)")
        mean = self.follow_mean(log_ratio, batch.weights, step)[..., None]
        kept = torch.where(log_ratio > mean, batch.weights, 0)
        log_density = self.model.log_density(batch.observations, batch.actions)
        loss = -(kept * log_density).sum(-1) / batch.weights.sum(-1)
        self.descend(loss, step)
        return {"loss": loss.detach(), "kept": kept.sum(-1) / batch.weights.sum(-1)}

    def sampler(self) -> GaussianSampler:
        return self.model
