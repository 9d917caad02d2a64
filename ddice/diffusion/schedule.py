"""Noise schedules: a_t = alpha(t) a_0 + sigma(t) noise, with t in [0, 1]."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.config import Config
from ddice.core.plugins import Door


class NoiseSchedule(Config, abstract=True):
    """A noise schedule; training and sampling use t in [t_min, 1].

    One of your own gives a `kind`, `log_alpha` and `time`; the rest follows from alpha^2 + sigma^2
    = 1. A path that does not preserve the variance gives `sigma` and `log_snr` too. alpha must be
    positive on [t_min, 1], and everything elementwise on tensors of any shape and dtype.
    """

    kind: str
    t_min: float = Field(
        1e-3, gt=0, lt=1, description="the smallest time that is trained and sampled"
    )

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha(t), falling in t."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""

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


class VariancePreserving(NoiseSchedule):
    """log alpha(t) = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2, alpha^2 + sigma^2 = 1.

    Source: Song et al., arXiv 2011.13456; the defaults are those of Diffusion-DICE.
    """

    kind: Literal["vp"] = "vp"
    beta_min: float = Field(0.1, gt=0, description="noise rate at t = 0")
    beta_max: float = Field(20.0, gt=0, description="noise rate at t = 1")

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * (self.beta_max - self.beta_min) * t * t - 0.5 * self.beta_min * t

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""
        # log_alpha = -softplus(-2 log_snr) / 2; the positive root of the quadratic, written without
        # cancellation.
        q = 2 * torch.nn.functional.softplus(-2 * log_snr)
        return q / (
            torch.sqrt(self.beta_min**2 + (self.beta_max - self.beta_min) * q) + self.beta_min
        )


AnySchedule = Annotated[VariancePreserving | NoiseSchedule, Door("ddice.schedules")]
