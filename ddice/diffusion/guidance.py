"""In-sample guidance: g(s, a_t, t) = log E[w(s, a) | s, a_t] up to a per-state constant, learned on
dataset actions only.

Source: Diffusion-DICE, arXiv 2407.20109, theorem 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ddice.core.config import Config, from_kind
from ddice.core.randomness import Seed
from ddice.diffusion.networks import MLP, TIME_FEATURES, AnyTime, Network, SmoothTime
from ddice.diffusion.schedule import NoiseSchedule
from ddice.diffusion.solvers import Denoiser
from ddice.parts.part import Optimizer


class Rescaling(Config, abstract=True):
    """A factor on the loss of a whole batch, which under Adam is an adaptive learning rate."""

    kind: str

    @abstractmethod
    def rescaled(
        self,
        loss: Tensor,  # (*seeds)
        g: Tensor,  # (*seeds, B, J), detached
        exponent_cut: float,
    ) -> Tensor:
        """The loss that is descended, (*seeds)."""


class Unscaled(Rescaling):
    """The loss as it is printed."""

    kind: Literal["none"] = "none"

    def rescaled(self, loss: Tensor, g: Tensor, exponent_cut: float) -> Tensor:
        return loss


class BatchMaximum(Rescaling):
    """The loss times exp(-max(-g)) of its batch, as published: no exp(-g) in it is above 1."""

    kind: Literal["batch_max"] = "batch_max"

    def rescaled(self, loss: Tensor, g: Tensor, exponent_cut: float) -> Tensor:
        # (*seeds, B, J) -> (*seeds). g comes detached, so the factor scales the gradient and adds
        # none of its own. The cap keeps the factor at e^{-exponent_cut} or more: with an unbounded
        # one the whole loss could underflow to 0.
        largest = torch.clamp((-g).flatten(-2).amax(-1), max=exponent_cut)
        # w e^{-g} e^{-max(-g)} <= w within the cap. The minimiser of one batch stays, but batches
        # with a small g anywhere count less than others.
        return loss * torch.exp(-largest)


AnyRescaling = Annotated[
    Annotated[Unscaled | BatchMaximum, Field(discriminator="kind")], BeforeValidator(from_kind)
]


class Guidance(Config):
    """The guidance network and how it is trained."""

    # Published: four layers of 256 with Fourier features of time, AdamW at 3e-4, and 16 or 32
    # noises per action. The defaults here are smaller and meant for short runs.
    network: MLP = MLP(hidden=(128, 128, 128), activation="silu", initialisation="kaiming")
    time: AnyTime = SmoothTime()
    optimizer: Optimizer = Optimizer(learning_rate=2e-3, decay="cosine")
    batch_size: int = Field(256, ge=1)
    # One ratio serves all J noises of an action: they lower the variance of the loss without
    # another evaluation of Q and V.
    noises_per_action: int = Field(
        4, ge=1, description="noises drawn per dataset action, at one shared time"
    )
    # g tends to log w itself as t -> 0, so the detail of w is learned at small times only.
    time_power: float = Field(
        1.0, gt=0, description="t = t_min + (1 - t_min) u^power: 2 draws small times more often"
    )
    # Where w = 0 the loss is +g and has no minimum (log E[w] would be -inf). e^-10 of the mean
    # ratio is nearly no weight and still a finite target.
    log_floor: float = Field(
        -10.0, lt=0, description="log ratios are floored at this, relative to the mean ratio"
    )
    log_cap: float | None = Field(
        None, gt=0, description="log ratios are capped at this, relative to the mean ratio"
    )
    # w -> c w moves the minimiser by log c. Guidance reads only the gradient in a_t, where the
    # constant is gone.
    normalize: bool = Field(
        True, description="divide ratios by their running mean, which changes g by a constant only"
    )
    # |d loss / dg| of one noised action is at most e^6 - 1, about 400: rare large ratios cannot
    # fill a whole batch gradient. The published code has no such cut below 80.
    exponent_cut: float = Field(
        6.0, gt=0, description="past this, exp(log w - g) goes on along its tangent"
    )
    rescale: AnyRescaling = Field(
        Unscaled(), description="what the loss of a batch is multiplied by"
    )

    def build(self, features: int, actions: int, *, seed: Seed) -> Network:
        """The network g(features, actions, time), untrained, with one output."""
        network = Network(
            {"features": features, "actions": actions, "time": TIME_FEATURES},
            seed=seed,
            stream="guidance",
            initialisation=self.network.initialisation,
        )
        # One output: g is a scalar per noised action, and only its gradient in "actions" is used.
        self.network.layers(network, ("features", "actions", self.time.layers(network, "time")), 1)
        return network


def in_sample_loss(log_ratio: Tensor, g: Tensor, exponent_cut: float) -> Tensor:
    """w exp(-g) + g elementwise, minimised in expectation by g = log E[w]; past log w - g =
    exponent_cut the exponential goes on along its tangent.

    log_ratio must be finite (floored): where w = 0 the loss is g alone and has no minimum.
    """
    # Theorem 1: min_g E[w e^{-g} + g] is convex in g. Its derivative 1 - e^{-g} E[w | s, a_t] is 0
    # at g = log E[w | s, a_t]. The dataset action that a_t was made from is itself a sample of
    # pi_D(a | s, a_t), so no action is generated. Here w e^{-g} = e^{log w - g}, so that neither
    # factor can overflow alone.
    exponent = log_ratio - g
    # exp never sees more than the cut, so neither its value nor its gradient can be inf, and the
    # product with relu = 0 is never inf * 0 = NaN.
    bounded = torch.clamp(exponent, max=exponent_cut)
    # exp(bounded) * (1 + excess) has the value of the tangent; its gradient is exp(bounded) on both
    # sides of the cut. relu, not clamp: at the cut itself only one branch may have a slope.
    # The detached factor loses nothing: below the cut relu is 0, above it the clamp has no slope.
    tangent = torch.exp(bounded) + torch.exp(bounded.detach()) * torch.relu(exponent - exponent_cut)
    return tangent + g


def bounded_log_ratio(
    log_ratio: Tensor, log_mean: Tensor, floor: float, cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """log (w / mean) between `floor` and `cap`, and which entries each of them changed;
    log_ratio (*seeds, B), log_mean (*seeds).
    """
    # (*seeds, B) - (*seeds, 1): only log(w / mean) is free of the scale that a backend gives to its
    # ratios, so floor and cap mean the same for all of them.
    relative = log_ratio - log_mean[..., None]
    floored = relative < floor
    capped = torch.zeros_like(floored) if cap is None else relative > cap
    # log w may be -inf (sparse divergences); the floor makes it finite before g is subtracted.
    return torch.clamp(relative, min=floor, max=cap), floored, capped


def guided(
    denoiser: Denoiser,
    gradient: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    scale: float,
) -> Denoiser:
    """The denoiser of the tilted distribution: noise - sigma(t) * scale * grad g(x, t), for any
    Gaussian path.

    scale = 1 is the theory; other scales are not exactly the ratio's power.
    """

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        # pi_t is proportional to pi_D,t e^g: its score is that of the prior plus grad g
        # (arXiv 2407.20109). As noise = -sigma * score, the sum reads noise - sigma grad g. A scale
        # k != 1 gives k log E[w | s, a_t], and the k-th power of the ratio would need log E[w^k |
        # s, a_t]; in general the two agree at t = 0 only.
        return denoiser(x, t) - schedule.sigma(t) * scale * gradient(x, t)

    return denoise


def network_gradient(
    network: Network, features: Tensor, schedule: NoiseSchedule
) -> Callable[[Tensor, Tensor], Tensor]:
    """The gradient in x of a guidance network at these features, as a callable (x, t) -> (...,
    A), without autograd.
    """

    def gradient(x: Tensor, t: Tensor) -> Tensor:
        # (4,) -> (1, ..., 1, 4), as many axes as x: one time for all samples.
        time = schedule.features(t).reshape(*(1,) * (x.ndim - 1), -1)
        # g has one output, so the sum over outputs is g itself, and [1] is grad g (..., A).
        return network.value_and_gradient(features, x, time, wrt="actions")[1]

    return gradient
