"""Exact answers, written from the formulas and not from the package: what the tests compare
with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def brute_force_conjugate(
    f: Callable[[Tensor], Tensor], y: Tensor, highest: float = 60.0
) -> Tensor:
    """max over a grid of x in [0, highest] of x y - f(x), float64; the grid is dense near 0,
    where f may be steep.
    """
    x = torch.cat(
        [torch.zeros(1), torch.logspace(-9, 0, 100_001), torch.linspace(1, highest, 200_001)]
    ).double()
    fx = f(x)
    return torch.stack([(x * one - fx).max() for one in y.double()])


def hellinger(x: Tensor) -> Tensor:
    """2 - 2 sqrt(x): the squared Hellinger distance before normalisation, as a user may write
    it.
    """
    return 2 - 2 * torch.sqrt(x)


@dataclass(frozen=True)
class VP:
    """The variance-preserving schedule in plain floats."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def alpha(self, t: float) -> float:
        return math.exp(-((self.beta_max - self.beta_min) * t**2 / 4 + self.beta_min * t / 2))

    def sigma(self, t: float) -> float:
        return math.sqrt(
            -math.expm1(-((self.beta_max - self.beta_min) * t**2 / 2 + self.beta_min * t))
        )

    def log_snr(self, t: float) -> float:
        return math.log(self.alpha(t)) - math.log(self.sigma(t))


@dataclass(frozen=True)
class GaussianData:
    """Clean actions ~ N(mean, std^2), each coordinate by itself: every a_t is Gaussian, and the
    diffusion ODE moves points affinely.
    """

    mean: float
    std: float
    schedule: VP = VP()

    def deviation(self, t: float) -> float:
        """The standard deviation of a_t."""
        return math.hypot(self.schedule.alpha(t) * self.std, self.schedule.sigma(t))

    def noise_prediction(self, x: Tensor, t: Tensor) -> Tensor:
        """E[noise | a_t = x] = -sigma * score: linear in x."""
        alpha, sigma = self.schedule.alpha(float(t)), self.schedule.sigma(float(t))
        return sigma * (x - alpha * self.mean) / self.deviation(float(t)) ** 2

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """The exact probability-flow map from time `start` to time `end`."""
        centred = x - self.schedule.alpha(start) * self.mean
        return (
            self.schedule.alpha(end) * self.mean
            + self.deviation(end) / self.deviation(start) * centred
        )


@dataclass(frozen=True)
class TwoPeaks:
    """Clean actions ~ half N(-centre, std^2), half N(centre, std^2): the posterior mean of the
    noise is nonlinear and known.
    """

    centre: float
    std: float
    schedule: VP = VP()

    def noise_prediction(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha(float(t)), self.schedule.sigma(float(t))
        variance = (alpha * self.std) ** 2 + sigma**2
        mean = (
            alpha * self.centre * torch.tanh(alpha * self.centre * x / variance)
        )  # the two peaks, weighted by their responsibility
        return sigma * (x - mean) / variance

    def velocity(self, t: float, x: np.ndarray) -> np.ndarray:
        """dx/dt of the probability-flow ODE: -beta/2 (x - noise / sigma)."""
        beta = self.schedule.beta_min + t * (self.schedule.beta_max - self.schedule.beta_min)
        noise = self.noise_prediction(
            torch.from_numpy(x), torch.tensor(t, dtype=torch.float64)
        ).numpy()
        return -beta / 2 * (x - noise / self.schedule.sigma(t))


def run_plan(plan: Sequence[tuple], inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Interpret the plan of a network without members, one layer after the other, in numpy.

    `plan` holds (op, inputs, output, weight, bias); inputs broadcast over their batch axes.
    """
    values, output = dict(inputs), ""
    for op, names, output, weight, bias in plan:
        arguments = [values[name] for name in names]
        if op in ("linear", "concat"):
            shape = np.broadcast_shapes(*(a.shape[:-1] for a in arguments))
            joined = np.concatenate(
                [np.broadcast_to(a, (*shape, a.shape[-1])) for a in arguments], axis=-1
            )
            values[output] = (
                np.einsum("...i,io->...o", joined, weight) + bias if op == "linear" else joined
            )
        elif op == "layer_norm":
            (x,) = arguments
            values[output] = (x - x.mean(-1, keepdims=True)) / np.sqrt(
                x.var(-1, keepdims=True) + 1e-5
            ) * weight + bias
        elif op == "fourier":
            angles = arguments[0][..., :1] * weight
            values[output] = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
        elif op == "add":
            values[output] = arguments[0] + arguments[1]
        elif op == "relu":
            values[output] = np.maximum(arguments[0], 0)
        elif op == "silu":
            values[output] = arguments[0] / (1 + np.exp(-arguments[0]))
        else:
            raise ValueError(
                f"a layer {op!r} is new to the plan: write it here, independently of the package"
            )
    return values[output]
