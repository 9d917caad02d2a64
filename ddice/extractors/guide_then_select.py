"""Guide-then-select: guidance learned in-sample moves the samples of the prior, then Q selects
(Diffusion-DICE, arXiv 2407.20109).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed, rand, randn
from ddice.data import Batch, Spec
from ddice.diffusion.guidance import Guidance, bounded_log_ratio, in_sample_loss
from ddice.diffusion.samplers import DiffusionSampler
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.extractors.base import DiffusionConfig, Extractor, relative_metrics
from ddice.parts import loop
from ddice.parts.part import weighted_mean
from ddice.policies.engines import QCallable
from ddice.policies.policy import Policy

# A guidance whose deviation stays below this has learned nothing: log ratios differ by far more.
STILL = 1e-2
# Above this effective sample size there is little to learn, and a constant guidance is right.
EVEN = 0.9


class GuideThenSelect(DiffusionConfig):
    """In-sample guidance learning (IGL), then selection among K guided candidates; candidates =
    1 is guide-only.
    """

    kind: Literal["guide_then_select"] = "guide_then_select"
    candidates: int = Field(
        4, ge=1, description="K, guided actions sampled per decision; 1 needs no Q"
    )
    guidance_scale: float = Field(
        1.0, ge=0, description="kappa, the factor on the guidance gradient; theory: 1"
    )
    guidance: Guidance = Guidance()

    def build(
        self, spec: Spec, seed: Seed = 0, prior: TrainedPrior | None = None
    ) -> GuideThenSelectExtractor:
        if prior is None:
            raise ValueError("GuideThenSelect needs a prior: build(spec, seed=..., prior=...)")
        return GuideThenSelectExtractor(self, spec, seed, prior)


class GuideThenSelectExtractor(Extractor):
    """The trainable guidance network."""

    config: GuideThenSelect
    prior: TrainedPrior
    deviation: Tensor
    evenness: Tensor

    def __init__(self, config: GuideThenSelect, spec: Spec, seed: Seed, prior: TrainedPrior):
        super().__init__(
            config, config.guidance.optimizer, config.guidance.batch_size, spec, seed, prior
        )
        self.network = config.guidance.build(prior.encoder.size, spec.actions.size, seed=seed)
        self.register_buffer(
            "deviation", torch.zeros(self.seed_shape, dtype=torch.float32, device="cpu")
        )
        self.register_buffer(
            "evenness", torch.ones(self.seed_shape, dtype=torch.float32, device="cpu")
        )

    def update(self, batch: Batch, *, step: int, log_ratio: Tensor | None = None) -> loop.Metrics:
        """One step on E[w exp(-g(s, a_t, t)) + g(s, a_t, t)], with J noises per dataset action
        at one shared time.
        """
        if log_ratio is None:
            raise ValueError(
                "GuideThenSelect learns from ratios: update(batch, "
                "log_ratio=backend.log_ratio(batch), step=step)"
            )
        self.expect_step(step)
        config, schedule = self.config.guidance, self.prior.config.schedule
        log_mean = (
            self.follow_mean(log_ratio, batch.weights, step)
            if config.normalize
            else torch.zeros_like(self.log_mean)
        )
        # log (w / mean w), floored: where w = 0 the loss below is g alone, which has no minimum.
        # Dividing by the mean shifts g by a constant and leaves its gradient, the guidance, as it
        # is.
        relative, floored, capped = bounded_log_ratio(
            log_ratio, log_mean, config.log_floor, config.log_cap
        )
        rows, size = batch.actions.shape[-2:]
        # One time t per dataset action, (*seeds, B, 1), shared by its J noises (*seeds, B, J, A),
        # as published.
        t = schedule.training_times(
            rand(self.seed, "guidance/time", step, (rows, 1), self.device), config.time_power
        )
        noise = randn(
            self.seed, "guidance/noise", step, (rows, config.noises_per_action, size), self.device
        )
        # a_t = alpha(t) a + sigma(t) noise, (*seeds, B, J, A): dataset actions only, none
        # generated. So w is never asked about an action outside the data.
        noised = schedule.noise(batch.actions.unsqueeze(-2), t, noise)
        # g(s, a_t, t), (*seeds, B, J).
        g = self.network(
            self.prior.encoder(batch.observations).unsqueeze(-2), noised, schedule.features(t)
        ).squeeze(-1)
        # Diffusion-DICE (arXiv 2407.20109), theorem 1, with g a function of (s, a_t, t):
        #   L = E[w(s, a) exp(-g) + g], dL/dg = 1 - E[w | s, a_t] exp(-g).
        # So g = log E[w | s, a_t] at the minimum, and its gradient in a_t is what the score of the
        # optimal policy has beyond that of the prior. w is a constant here: g alone learns.
        losses = in_sample_loss(relative.unsqueeze(-1), g, config.exponent_cut)
        # Mean over the J noises, then over the rows: (*seeds, B, J) -> (*seeds, B) -> (*seeds).
        loss = weighted_mean(losses.mean(-1), batch.weights)
        # g is detached: the factor must not be something that g can lower the loss with.
        loss = config.rescale.rescaled(loss, g.detach(), config.exponent_cut)
        self.descend(loss, step)
        metrics = relative_metrics(relative, floored, capped, batch.weights)
        # Buffers, so that `policy` can still judge after a save and a load.
        self.deviation.copy_(g.detach().flatten(-2).std(-1))
        self.evenness.copy_(metrics["effective_sample_size"])
        # Past the cut exp(log w - g) goes on along its tangent, so that its gradient is bounded.
        cut_rate = (
            (relative.unsqueeze(-1) - g.detach() > config.exponent_cut)
            .to(g.dtype)
            .flatten(-2)
            .mean(-1)
        )
        return {
            "loss": loss.detach(),
            "guidance_deviation": self.deviation.clone(),
            "exponent_cut_rate": cut_rate,
            **metrics,
        }

    def sampler(self) -> DiffusionSampler:
        # Guided noise prediction: noise - sigma(t) kappa grad g(s, a_t, t) (arXiv 2407.20109).
        config = self.config.diffusion(self.prior, self.config.guidance, self.config.guidance_scale)
        return DiffusionSampler(config, self.prior.encoder, self.prior.averaged, self.network)

    def policy(self, q: QCallable | None = None, notes: Mapping[str, str] | None = None) -> Policy:
        """See `Extractor.policy`. Warns when the guidance has not learned although the ratios
        differ.
        """
        if self.step and float(self.deviation) < STILL and float(self.evenness) < EVEN:
            warnings.warn(
                f"the guidance network is constant (deviation {float(self.deviation):.2g}) "
                "although the effective sample size of the ratios is "
                f"{float(self.evenness):.2g}: it has not learned. Train longer, raise its "
                "learning rate, or use smooth time features",
                stacklevel=2,
            )
        return super().policy(q, notes)
