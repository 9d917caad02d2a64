"""Guidance and sampling in closed form: Gaussian mixtures as priors, times ratios that are sums of
exponentials of quadratics.

With p(a) = sum_k m_k N(a; mu_k, v_k) and w(a) = sum_j exp(c_j + b_j a - l_j a^2 / 2), coordinate by
coordinate, p w is again a mixture of Gaussians, and so is each diffused marginal: p_t(x) E[w | a_t
= x] is the diffused p w. Everything is exact in float64, at every time of any Gaussian path.

What a guidance scale kappa samples: the diffusion ODE with score grad log p_t + kappa grad log E[w
| a_t] ends in p w for kappa = 1. For other scales it does not in general end in p w^kappa, because
E[w | a_t]^kappa is not E[w^kappa | a_t]. Two closed forms show it: p = N(mu, v) and w = exp(b a)
give N(mu + kappa b v, v), exactly p w^kappa; p = N(0, v) and w = exp(-l a^2 / 2), so that p w has
the variance v' = v / (1 + l v), give the variance v^(1 - kappa) v'^kappa, while that of p w^kappa
is 1 / ((1 - kappa) / v + kappa / v'): for v = 1 and v' = 1/2, a scale of 2 samples the variance 1/4
and not 1/3. `exact_flow` gives what is really sampled, `ExponentialRatio.power` and `quantiles`
give p w^kappa.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddice.diffusion.schedule import NoiseSchedule
from ddice.diffusion.solvers import Denoiser

Numbers = Sequence[Sequence[float]] | Tensor


def _table(numbers: Numbers) -> Tensor:
    table = torch.as_tensor(numbers, dtype=torch.float64, device="cpu")
    if table.ndim != 2:
        raise ValueError(
            "expected one row per component and one column per action dimension, got shape "
            f"{tuple(table.shape)}"
        )
    return table


@dataclass(frozen=True)
class ExponentialRatio:
    """w(a) = sum_j exp(offsets_j + slopes_j . a - sum_i curvatures_ji a_i^2 / 2); offsets (J,),
    slopes and curvatures (J, A), float64.
    """

    offsets: Tensor
    slopes: Tensor
    curvatures: Tensor

    @classmethod
    def linear(cls, slope: Sequence[float]) -> ExponentialRatio:
        """w = exp(slope . a)."""
        return cls.quadratic(slope, [0.0] * len(slope))

    @classmethod
    def quadratic(cls, slope: Sequence[float], curvature: Sequence[float]) -> ExponentialRatio:
        """w = exp(slope . a - sum_i curvature_i a_i^2 / 2); a negative curvature makes tails
        heavier, within `GaussianMixture.tilted`'s range.
        """
        return cls(
            torch.zeros(1, dtype=torch.float64, device="cpu"), _table([slope]), _table([curvature])
        )

    @classmethod
    def bumps(
        cls, heights: Sequence[float], centres: Numbers, deviations: Numbers
    ) -> ExponentialRatio:
        """w = sum_j heights_j exp(-sum_i (a_i - centres_ji)^2 / (2 deviations_ji^2)): a mixture
        ratio, nearly sparse where bumps are narrow.
        """
        centres, curvatures = _table(centres), _table(deviations) ** -2
        offsets = (
            torch.as_tensor(heights, dtype=torch.float64, device="cpu").log()
            - (curvatures * centres**2).sum(-1) / 2
        )
        return cls(offsets, curvatures * centres, curvatures)

    def log(self, actions: Tensor) -> Tensor:
        """log w, (...,) from actions (..., A)."""
        a = actions.double()[..., None, :]
        return torch.logsumexp(
            self.offsets + (self.slopes * a - self.curvatures * a * a / 2).sum(-1), -1
        )

    def power(self, scale: float) -> ExponentialRatio:
        """w^scale. Raises ValueError for a ratio of several terms, whose powers are no longer
        sums of exponentials.
        """
        if len(self.offsets) > 1:
            raise ValueError(
                f"expected a ratio of one exponential, got {len(self.offsets)}: use "
                "quantiles() of log p + scale log w instead"
            )
        return ExponentialRatio(scale * self.offsets, scale * self.slopes, scale * self.curvatures)


@dataclass(frozen=True)
class GaussianMixture:
    """sum_k exp(log_masses_k) N(means_k, diag(variances_k)); log_masses (K,), means and
    variances (K, A), float64. The total mass need not be 1.
    """

    log_masses: Tensor
    means: Tensor
    variances: Tensor

    @classmethod
    def of(cls, shares: Sequence[float], means: Numbers, deviations: Numbers) -> GaussianMixture:
        """From shares (K,) that are divided by their sum, means (K, A) and standard deviations
        (K, A).
        """
        shares_ = torch.as_tensor(shares, dtype=torch.float64, device="cpu")
        return cls((shares_ / shares_.sum()).log(), _table(means), _table(deviations) ** 2)

    @property
    def log_mass(self) -> Tensor:
        """The log of the total mass: log E[w] after `tilted`."""
        return torch.logsumexp(self.log_masses, 0)

    @property
    def mean(self) -> Tensor:
        """(A,)"""
        return torch.softmax(self.log_masses, 0) @ self.means

    @property
    def variance(self) -> Tensor:
        """(A,), of each coordinate."""
        return torch.softmax(self.log_masses, 0) @ (self.variances + self.means**2) - self.mean**2

    def log_density(self, x: Tensor) -> Tensor:
        """(...,) from x (..., A)."""
        return torch.logsumexp(self._terms(x), -1)

    def score(self, x: Tensor) -> Tensor:
        """The gradient of the log density, (..., A)."""
        share = torch.softmax(self._terms(x), -1)[..., None]
        return -(share * (x[..., None, :] - self.means) / self.variances).sum(-2)

    def _terms(self, x: Tensor) -> Tensor:
        square = (x[..., None, :] - self.means) ** 2 / self.variances
        return self.log_masses - (square + torch.log(2 * math.pi * self.variances)).sum(-1) / 2

    def diffused(self, schedule: NoiseSchedule, t: Tensor | float) -> GaussianMixture:
        """The marginal of a_t = alpha(t) a + sigma(t) noise, for one time t."""
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return GaussianMixture(
            self.log_masses, alpha * self.means, alpha**2 * self.variances + sigma**2
        )

    def tilted(self, ratio: ExponentialRatio) -> GaussianMixture:
        """The product with a ratio, (K J components); its total mass is E[w]. Raises ValueError
        where that is infinite.
        """
        precision = 1 / self.variances[:, None] + ratio.curvatures
        if not bool((precision > 0).all()):
            raise ValueError(
                "E[w] is infinite: expected curvatures above -1 / variance = "
                f"{(-1 / self.variances).min(0).values.tolist()}"
            )
        means = (self.means[:, None] / self.variances[:, None] + ratio.slopes) / precision
        gain = (
            means**2 * precision
            - (self.means**2 / self.variances)[:, None]
            - torch.log(self.variances[:, None] * precision)
        )
        masses = self.log_masses[:, None] + ratio.offsets + gain.sum(-1) / 2
        return GaussianMixture(masses.flatten(), means.flatten(0, 1), (1 / precision).flatten(0, 1))

    def guidance(
        self, ratio: ExponentialRatio, schedule: NoiseSchedule, x: Tensor, t: Tensor | float
    ) -> Tensor:
        """log E[w | a_t = x], (...,) from x (..., A)."""
        return self.tilted(ratio).diffused(schedule, t).log_density(x) - self.diffused(
            schedule, t
        ).log_density(x)

    def gradient(self, ratio: ExponentialRatio, schedule: NoiseSchedule) -> Denoiser:
        """The gradient of `guidance` as a callable (x (..., A), t) -> (..., A): what a guidance
        network learns.
        """
        tilted = self.tilted(ratio)
        return lambda x, t: (
            tilted.diffused(schedule, t).score(x.double())
            - self.diffused(schedule, t).score(x.double())
        ).to(x.dtype)

    def denoiser(self, schedule: NoiseSchedule) -> Denoiser:
        """E[noise | a_t = x] = -sigma(t) score, as a callable (x, t): what a prior learns."""
        return lambda x, t: (
            -schedule.sigma(t.double()) * self.diffused(schedule, t).score(x.double())
        ).to(x.dtype)

    def sample(self, count: int, seed: int) -> Tensor:
        """(count, A) independent draws, float64."""
        source = torch.Generator("cpu").manual_seed(seed)
        index = torch.multinomial(
            torch.softmax(self.log_masses, 0), count, replacement=True, generator=source
        )
        noise = torch.randn(
            count, self.means.shape[-1], generator=source, dtype=torch.float64, device="cpu"
        )
        return self.means[index] + self.variances[index].sqrt() * noise


def exact_flow(
    denoiser: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    *,
    end: float | None = None,
    steps: int = 1000,
) -> Tensor:
    """Where the diffusion ODE takes x (..., A) from t = 1 to `end` (t_min by default), float64.

    In y = x / alpha and s = sigma / alpha the ODE is dy/ds = noise(x, t): classical Runge-Kutta in
    log s, for any denoiser, guided or not. Doubling 1000 steps changes the mixtures of the tests by
    less than 1e-9.
    """
    stop = torch.tensor(schedule.t_min if end is None else end, dtype=torch.float64, device="cpu")
    start = torch.tensor(1.0, dtype=torch.float64, device="cpu")
    grid = torch.linspace(
        -float(schedule.log_snr(start)),
        -float(schedule.log_snr(stop)),
        steps + 1,
        dtype=torch.float64,
        device="cpu",
    )
    y = x.double() / schedule.alpha(start)

    def slope(log_s: Tensor, y: Tensor) -> Tensor:
        t = schedule.time(-log_s)
        return log_s.exp() * denoiser(schedule.alpha(t) * y, t)

    width = grid[1] - grid[0]
    for log_s in grid[:-1]:
        first = slope(log_s, y)
        second = slope(log_s + width / 2, y + width / 2 * first)
        third = slope(log_s + width / 2, y + width / 2 * second)
        y = y + width / 6 * (
            first + 2 * second + 2 * third + slope(log_s + width, y + width * third)
        )
    return schedule.alpha(stop) * y


def quantiles(
    log_density: Callable[[Tensor], Tensor], count: int, low: float = -6.0, high: float = 6.0
) -> Tensor:
    """The (i + 1/2) / count quantiles of an unnormalised density on [low, high] in one
    dimension, (count, 1), on a grid of 100,001 points.
    """
    x = torch.linspace(low, high, 100_001, dtype=torch.float64, device="cpu")
    density = torch.softmax(log_density(x[:, None]), 0)
    cumulative = density.cumsum(0) - density / 2
    target = (torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) / count
    index = torch.searchsorted(cumulative, target).clamp(1, len(x) - 1)
    part = (target - cumulative[index - 1]) / (cumulative[index] - cumulative[index - 1])
    return (x[index - 1] + part.clamp(0, 1) * (x[1] - x[0]))[:, None]


def threshold_guidance(
    prior: GaussianMixture, at: float, schedule: NoiseSchedule
) -> tuple[Callable[[Tensor, Tensor], Tensor], Denoiser]:
    """For the sparse ratio w = 1 where a > at, else 0: log E[w | a_t] (...,) and its gradient (...,
    1), as callables (x (..., 1), t).

    Raises ValueError for a prior of several action dimensions.
    """
    if prior.means.shape[-1] != 1:
        raise ValueError(f"expected a prior of one action dimension, got {prior.means.shape[-1]}")

    def value(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t.double()), schedule.sigma(t.double())
        marginal = prior.diffused(schedule, t)
        share = torch.log_softmax(marginal._terms(x), -1)
        posterior = (
            prior.means * sigma**2 + prior.variances * alpha * x[..., None, :]
        ) / marginal.variances
        deviation = (prior.variances / marginal.variances).sqrt() * sigma
        return torch.logsumexp(
            share + torch.special.log_ndtr((posterior - at) / deviation)[..., 0], -1
        )

    def gradient(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().double().requires_grad_()
            return torch.autograd.grad(value(leaf, t).sum(), leaf)[0].to(x.dtype)

    return value, gradient
