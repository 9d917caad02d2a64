"""Weighted behaviour cloning: the prior's denoising loss, or a Gaussian's likelihood, weighted
by the ratio.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec
from ddice.diffusion.guidance import bounded_log_ratio
from ddice.diffusion.networks import MLP, AnyEncoder, FlattenEncoder
from ddice.diffusion.samplers import DiffusionSampler, Gaussian, GaussianSampler
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.extractors.base import DiffusionConfig, Extractor, SelectingConfig, relative_metrics
from ddice.parts import loop
from ddice.parts.part import Optimizer, weighted_mean


class _WeightedConfig(SelectingConfig, abstract=True):
    optimizer: Optimizer = Optimizer(learning_rate=1e-3, decay="cosine")
    batch_size: int = Field(256, ge=1)
    log_cap: float = Field(
        4.6,
        gt=0,
        description="log of the largest weight, relative to the mean ratio; 4.6 is a weight of 100",
    )


class WeightedBC(_WeightedConfig, DiffusionConfig):
    """A diffusion policy trained on E[w / mean(w) * |noise - network(a_t, t)|^2]: its samples
    follow pi_D(a | s) w(s, a).

    Takes action and state-action ratios alike: a factor of the state decides only which states get
    capacity.
    """

    kind: Literal["weighted_bc"] = "weighted_bc"
    init: Literal["prior", "fresh"] = Field(
        "prior", description="start from a copy of the prior, or from new weights"
    )

    def build(
        self, spec: Spec, seed: Seed = 0, prior: TrainedPrior | None = None
    ) -> WeightedBCExtractor:
        if prior is None:
            raise ValueError("WeightedBC needs a prior: build(spec, seed=..., prior=...)")
        return WeightedBCExtractor(self, spec, seed, prior)


class GaussianBC(_WeightedConfig):
    """The classic DICE extraction: a Gaussian policy of greatest ratio-weighted likelihood. It
    needs no prior.
    """

    kind: Literal["gaussian_bc"] = "gaussian_bc"
    network: MLP = MLP()
    encoder: AnyEncoder = FlattenEncoder()

    needs_prior = False

    def build(
        self, spec: Spec, seed: Seed = 0, prior: TrainedPrior | None = None
    ) -> GaussianBCExtractor:
        return GaussianBCExtractor(self, spec, seed)


class _Weighted(Extractor):
    config: _WeightedConfig

    def factors(
        self, batch: Batch, log_ratio: Tensor | None, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Ratios divided by their running mean and capped, (*seeds, B), and their diagnostics."""
        if log_ratio is None:
            raise ValueError(
                "weighted behaviour cloning learns from ratios: update(batch, "
                "log_ratio=backend.log_ratio(batch), step=step)"
            )
        log_mean = self.follow_mean(log_ratio, batch.weights, step)
        # w / mean(w), so that neither the temperature nor c in E[w] = c changes the step size. No
        # floor: a weight of 0 is right here, as the loss has its minimum without that row. The cap
        # bounds what one row can add to a step.
        relative, _, capped = bounded_log_ratio(
            log_ratio, log_mean, -torch.inf, self.config.log_cap
        )
        return relative.exp(), relative_metrics(
            relative, torch.zeros_like(capped), capped, batch.weights
        )


class WeightedBCExtractor(_Weighted):
    """The trainable copy of the prior."""

    config: WeightedBC
    prior: TrainedPrior

    def __init__(self, config: WeightedBC, spec: Spec, seed: Seed, prior: TrainedPrior):
        super().__init__(config, config.optimizer, config.batch_size, spec, seed, prior)
        self.model = prior.config.build(spec, seed, stream="weighted_bc")
        if config.init == "prior":
            # Both start at the prior's averaged weights: with another start the average would lag
            # behind from the first step.
            for network in (self.model.network, self.model.averaged):
                network.load_state_dict(prior.averaged.state_dict())

    def update(self, batch: Batch, *, step: int, log_ratio: Tensor | None = None) -> loop.Metrics:
        """One step on the weighted denoising loss."""
        self.expect_step(step)
        factors, metrics = self.factors(batch, log_ratio, step)
        # L = E[(w / mean w) |noise - network(s, a_t, t)|^2]. Weighting the data by w makes
        # pi_D(a | s) w(s, a) the distribution that is denoised: acting needs no guidance. w is a
        # constant here.
        loss = self.model.loss(batch, step, factors)
        self.descend(loss, step)
        self.model.follow(step)
        return {"loss": loss.detach(), **metrics}

    def sampler(self) -> DiffusionSampler:
        return DiffusionSampler(
            self.config.diffusion(self.prior), self.model.encoder, self.model.averaged, None
        )


class GaussianBCExtractor(_Weighted):
    """The trainable Gaussian."""

    config: GaussianBC

    def __init__(self, config: GaussianBC, spec: Spec, seed: Seed):
        super().__init__(config, config.optimizer, config.batch_size, spec, seed, None)
        self.model = Gaussian(network=config.network, encoder=config.encoder).build(spec, seed)

    def update(self, batch: Batch, *, step: int, log_ratio: Tensor | None = None) -> loop.Metrics:
        """One step on -E[w / mean(w) * log pi(a | s)]."""
        self.expect_step(step)
        factors, metrics = self.factors(batch, log_ratio, step)
        # L = -E_D[(w / mean w) log pi(a | s)]. Its minimum is that of KL(pi_D w || pi) among the
        # Gaussians, which covers all the modes rather than choosing one.
        loss = weighted_mean(
            -factors * self.model.log_density(batch.observations, batch.actions), batch.weights
        )
        self.descend(loss, step)
        return {"loss": loss.detach(), **metrics}

    def sampler(self) -> GaussianSampler:
        return self.model
