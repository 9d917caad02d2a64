"""Noise schedules: a_t = alpha(t) a_0 + sigma(t) noise, with t in [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.config import Config


class NoiseSchedule(Config):
    """The variance-preserving schedule: log alpha(t) = -(beta_max - beta_min) t^2 / 4 - beta_min t
    / 2, alpha^2 + sigma^2 = 1.

    Source: Song et al., arXiv 2011.13456; the defaults are those of Diffusion-DICE. Training and
    sampling use t in [t_min, 1].
    """

    kind: Literal["vp"] = "vp"
    beta_min: float = Field(0.1, gt=0, description="noise rate at t = 0")
    beta_max: float = Field(20.0, gt=0, description="noise rate at t = 1")
    t_min: float = Field(
        1e-3, gt=0, lt=1, description="the smallest time that is trained and sampled"
    )

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * (self.beta_max - self.beta_min) * t * t - 0.5 * self.beta_min * t

    def alpha(self, t: Tensor) -> Tensor:
        """The factor on the clean action, in (0, 1]."""
        return torch.exp(self.log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise, in [0, 1)."""
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha(t) / sigma(t)), decreasing in t."""
        log_alpha = self.log_alpha(t)
        return log_alpha - 0.5 * torch.log(-torch.expm1(2 * log_alpha))

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""
        # log_alpha = -softplus(-2 log_snr) / 2; the positive root of the quadratic, written without
        # cancellation.
        q = 2 * torch.nn.functional.softplus(-2 * log_snr)
        return q / (
            torch.sqrt(self.beta_min**2 + (self.beta_max - self.beta_min) * q) + self.beta_min
        )

    def training_times(self, uniform: Tensor, power: float = 1.0) -> Tensor:
        """Times t_min + (1 - t_min) u^power from uniform numbers u: power 1 is uniform, 2 draws
        small times more often.
        """
        return self.t_min + (1 - self.t_min) * uniform**power

    def features(self, t: Tensor) -> Tensor:
        """Smooth descriptions of the noise level for networks: (t, log_snr / 5, alpha, sigma),
        (..., 4).
        """
        return torch.stack([t, self.log_snr(t) / 5, self.alpha(t), self.sigma(t)], dim=-1)

    def noise(self, actions: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """alpha(t) actions + sigma(t) noise; t is (...) and broadcasts over the last axis of
        actions (..., A).
        """
        return self.alpha(t)[..., None] * actions + self.sigma(t)[..., None] * noise
