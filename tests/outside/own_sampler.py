"""A sampler from outside: one network evaluation per action, distilled from the prior's flow."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed, randn
from ddice.data import Batch, Spec
from ddice.diffusion.networks import MLP, AnyEncoder, Encoder, FlattenEncoder, Network
from ddice.diffusion.samplers import Sampler, SamplerConfig
from ddice.diffusion.solvers import DDIM, AnySolver
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.extractors import Extractor, SelectingConfig
from ddice.parts.part import Optimizer, weighted_mean


class OneStep(SamplerConfig):
    """action = network(features, noise)."""

    kind: Literal["one_step"] = "one_step"
    network: MLP = MLP(hidden=(16,))
    encoder: AnyEncoder = FlattenEncoder()

    def build(self, spec: Spec, seed: Seed = 0) -> "OneStepSampler":
        encoder = self.encoder.build(spec.normalizer.mean, spec.normalizer.std)
        inputs = {"features": encoder.size, "noise": spec.actions.size}
        network = self.network.build(inputs, spec.actions.size, seed=seed, stream="one_step")
        return OneStepSampler(self, encoder, network)


class OneStepSampler(Sampler):
    def __init__(self, config: OneStep, encoder: Encoder, network: Network):
        super().__init__()
        self.config, self.encoder, self.network = config, encoder, network

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        return self.network(self.encoder(observations).unsqueeze(-2), noise)


class Distilled(SelectingConfig):
    """E |network(s, noise) - flow(s, noise)|^2 over states of the data."""

    kind: Literal["distilled"] = "distilled"
    model: OneStep = OneStep()
    teacher: AnySolver = DDIM(evaluations=4)
    batch_size: int = Field(16, ge=1)

    needs_ratio: ClassVar[bool] = False

    def build(
        self, spec: Spec, seed: Seed = 0, prior: TrainedPrior | None = None
    ) -> "DistilledPart":
        if prior is None:
            raise ValueError("Distilled needs a prior: build(spec, seed=..., prior=...)")
        return DistilledPart(self, spec, seed, prior)


class DistilledPart(Extractor):
    config: Distilled
    prior: TrainedPrior

    def __init__(self, config: Distilled, spec: Spec, seed: Seed, prior: TrainedPrior):
        super().__init__(config, Optimizer(), config.batch_size, spec, seed, prior)
        self.model = config.model.build(spec, seed)

    def update(
        self, batch: Batch, *, step: int, log_ratio: Tensor | None = None
    ) -> dict[str, Tensor]:
        noise = randn(self.seed, "distilled", step, batch.actions.shape[-2:], self.device)
        features = self.prior.encoder(batch.observations)
        with torch.no_grad():
            schedule = self.prior.config.schedule
            flow = self.config.teacher.integrate(self.prior.denoiser(features), noise, schedule)
        predicted = self.model(batch.observations, noise.unsqueeze(-2)).squeeze(-2)
        loss = weighted_mean((predicted - flow.clamp(-1, 1)).square().sum(-1), batch.weights)
        self.descend(loss, step)
        return {"loss": loss.detach()}

    def sampler(self) -> OneStepSampler:
        return self.model
