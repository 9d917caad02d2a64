"""Noise schedules: a_t = alpha(t) a_0 + sigma(t) noise, with t in [0, 1]."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

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
        # sigma^2 = 1 - alpha^2 = 1 - e^{2 log alpha}. At t = 1e-3 it is about 1e-4, where the plain
        # difference keeps only three to four digits in float32; expm1 keeps them all.
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha(t) / sigma(t)), decreasing in t."""
        log_alpha = self.log_alpha(t)
        # lambda = log alpha - log sigma, with sigma^2 by expm1 as in `sigma`. Staying with
        # logarithms avoids a division by a tiny sigma.
        return log_alpha - 0.5 * torch.log(-torch.expm1(2 * log_alpha))

    def training_times(self, uniform: Tensor, power: float = 1.0) -> Tensor:
        """Times t_min + (1 - t_min) u^power from uniform numbers u: power 1 is uniform, 2 draws
        small times more often.
        """
        # Not from 0: there sigma = 0, so the noise cannot be read from a_t and lambda is infinite.
        return self.t_min + (1 - self.t_min) * uniform**power

    def features(self, t: Tensor) -> Tensor:
        """Smooth descriptions of the noise level for networks: (t, log_snr / 5, alpha, sigma),
        (..., 4).
        """
        # (...) -> (..., 4). With the default schedule lambda falls from 4.6 at t_min to -5.0 at
        # t = 1, so the division by 5 brings it to the scale of the other three.
        return torch.stack([t, self.log_snr(t) / 5, self.alpha(t), self.sigma(t)], dim=-1)

    def noise(self, actions: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """alpha(t) actions + sigma(t) noise; t is (...) and broadcasts over the last axis of
        actions (..., A).
        """
        # a_t ~ N(alpha a_0, sigma^2 I): the transition kernel of Song et al., arXiv 2011.13456,
        # (...) -> (..., 1) against (..., A).
        return self.alpha(t)[..., None] * actions + self.sigma(t)[..., None] * noise


class VariancePreserving(NoiseSchedule):
    """log alpha(t) = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2, alpha^2 + sigma^2 = 1.

    Source: Song et al., arXiv 2011.13456; the defaults are those of Diffusion-DICE.
    """

    kind: Literal["vp"] = "vp"
    beta_min: float = Field(0.1, gt=0, description="noise rate at t = 0")
    beta_max: float = Field(20.0, gt=0, description="noise rate at t = 1, no less than beta_min")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        # In the other order `time` has no real root past t = 1, where rounding leads.
        if self.beta_max < self.beta_min:
            raise ValueError(
                f"expected beta_max of at least beta_min = {self.beta_min:g}, got "
                f"{self.beta_max:g}: were they swapped?"
            )
        return self

    def log_alpha(self, t: Tensor) -> Tensor:
        # log alpha = -1/2 int_0^t beta(s) ds with beta(s) = beta_min + (beta_max - beta_min) s
        # (arXiv 2011.13456, appendix C).
        return -0.25 * (self.beta_max - self.beta_min) * t * t - 0.5 * self.beta_min * t

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""
        # log_alpha = -softplus(-2 log_snr) / 2; the positive root of the quadratic, written without
        # cancellation.
        # As alpha^2 = sigmoid(2 lambda), t solves (beta_max - beta_min) t^2 + 2 beta_min t = q.
        # This form of the root holds for beta_max = beta_min too.
        q = 2 * torch.nn.functional.softplus(-2 * log_snr)
        return q / (
            torch.sqrt(self.beta_min**2 + (self.beta_max - self.beta_min) * q) + self.beta_min
        )


AnySchedule = Annotated[VariancePreserving | NoiseSchedule, Door("ddice.schedules")]
