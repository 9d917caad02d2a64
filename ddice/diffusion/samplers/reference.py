"""The readable samplers: observations (B, S) and noise (B, K, A) -> K candidate actions (B, K,
A), not yet mapped into the bounds.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Spec
from ddice.diffusion.guidance import Guidance, guided, network_gradient
from ddice.diffusion.networks import MLP, AnyEncoder, Encoder, FlattenEncoder, Network
from ddice.diffusion.prior import AnyPrior, network_denoiser
from ddice.diffusion.samplers.base import Sampler, SamplerConfig
from ddice.diffusion.solvers import PUBLISHED, AnySolver

LOG_STD = (
    -5.0,
    1.0,
    # of the Gaussian, in units of half the action range: from nearly deterministic to wider than
    # the box
)

# The default of everything that samples, and what it says of itself.
CLIP_DENOISED = True
ABOUT_CLIPPING = (
    "keep the clean action that is predicted at every evaluation within the action bounds; an "
    "exact model is not changed by it"
)


class Diffusion(SamplerConfig):
    """How to build a diffusion sampler: kept with every saved policy."""

    kind: Literal["diffusion"] = "diffusion"
    prior: AnyPrior
    guidance: Guidance | None = None
    # Published: 4 on medium and medium-replay locomotion and 2 on medium-expert; on AntMaze 1, 2
    # and 4 for umaze, medium and large.
    guidance_scale: float = Field(
        1.0, ge=0, description="kappa, the factor on the guidance gradient; theory: 1"
    )
    solver: AnySolver = PUBLISHED
    clip_denoised: bool = Field(CLIP_DENOISED, description=ABOUT_CLIPPING)

    def build(self, spec: Spec) -> DiffusionSampler:
        encoder, network = self.prior.modules(spec)
        guidance = (
            None
            if self.guidance is None
            # Any seed will do: the saved weights replace the initial ones.
            else self.guidance.build(encoder.size, spec.actions.size, seed=0)
        )
        return DiffusionSampler(self, encoder, network, guidance)


class DiffusionSampler(Sampler):
    """Integrates the diffusion ODE of the prior, guided where there is a guidance network."""

    config: Diffusion

    def __init__(
        self, config: Diffusion, encoder: Encoder, network: Network, guidance: Network | None
    ):
        super().__init__()
        self.config, self.encoder, self.network, self.guidance = config, encoder, network, guidance

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Observations (B, S), noise (B, K, A) -> candidates (B, K, A)."""
        # (B, F) -> (B, 1, F), broadcast over K: what depends on the state alone is computed once
        # for all its candidates.
        features, schedule = self.encoder(observations)[:, None], self.config.prior.schedule
        denoiser = network_denoiser(self.network, features, self.config.prior)
        # At scale 0 the product is 0, and the evaluation of g would be wasted.
        if self.guidance is not None and self.config.guidance_scale:
            denoiser = guided(
                denoiser,
                network_gradient(self.guidance, features, schedule),
                schedule,
                self.config.guidance_scale,
            )
        # The ODE is deterministic (arXiv 2011.13456, section 4.3): all randomness is in the noise
        # at t = 1, so fixed noise makes the policy deterministic.
        return self.config.solver.integrate(
            denoiser, noise, schedule, clip=self.config.clip_denoised
        )


class Gaussian(SamplerConfig):
    """A Gaussian with state-dependent mean, within the bounds by tanh, and diagonal deviation."""

    kind: Literal["gaussian"] = "gaussian"
    network: MLP = MLP()
    encoder: AnyEncoder = FlattenEncoder()

    def build(self, spec: Spec, seed: Seed = 0) -> GaussianSampler:
        encoder = self.encoder.build(spec.normalizer.mean, spec.normalizer.std)
        return GaussianSampler(
            self,
            encoder,
            # Two numbers per action dimension: mean and log deviation.
            self.network.build(
                {"features": encoder.size}, 2 * spec.actions.size, seed=seed, stream="gaussian"
            ),
        )


def gaussian_mean_and_log_std(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """A network's numbers (..., 2A) -> tanh(first half), and the second half squashed into
    `LOG_STD`.
    """
    mean, log_std = numbers.chunk(2, dim=-1)
    low, high = LOG_STD
    # A sigmoid rather than a clamp on log std: beyond a clamp the gradient is 0, and a deviation
    # that has left the range could never return.
    return torch.tanh(mean), low + (high - low) * torch.sigmoid(log_std)


class GaussianSampler(Sampler):
    """mean(s) + std(s) * noise."""

    config: Gaussian

    def __init__(self, config: Gaussian, encoder: Encoder, network: Network):
        super().__init__()
        self.config, self.encoder, self.network = config, encoder, network

    def mean_and_log_std(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (*seeds, B, S) -> two of (*seeds, B, A)."""
        return gaussian_mean_and_log_std(self.network(self.encoder(observations)))

    def log_density(self, observations: Tensor, actions: Tensor) -> Tensor:
        """log N(a; mean, std^2) up to the constant -A log(2 pi) / 2, (*seeds, B)."""
        mean, log_std = self.mean_and_log_std(observations)
        # -sum_a [(a - mean)^2 / (2 std^2) + log std], (*seeds, B, A) -> (*seeds, B).
        return -(0.5 * ((actions - mean) / log_std.exp()).square() + log_std).sum(-1)

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Observations (B, S), noise (B, K, A) -> candidates (B, K, A)."""
        mean, log_std = self.mean_and_log_std(observations)
        # (B, A) -> (B, 1, A), against noise (B, K, A).
        return mean[:, None] + log_std.exp()[:, None] * noise
