"""The behaviour policy pi_D(a | s) as a diffusion model of actions: trained once, shared by
every extractor.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ddice.core.config import Config
from ddice.core.plugins import Door
from ddice.core.randomness import Seed, rand, randn
from ddice.data import Batch, Spec, Transitions
from ddice.diffusion.networks import (
    AnyEncoder,
    AnyScore,
    Encoder,
    FlattenEncoder,
    Network,
    ResidualScore,
)
from ddice.diffusion.prediction import AnyPrediction, VelocityPrediction
from ddice.diffusion.schedule import AnySchedule, VariancePreserving
from ddice.diffusion.solvers import Denoiser
from ddice.parts import loop
from ddice.parts.fitting import Fits
from ddice.parts.part import Optimizer, Part, average, weighted_mean


def denoising_loss(
    predicted: Tensor, target: Tensor, weights: Tensor, factors: Tensor | None = None
) -> Tensor:
    """Weighted mean over rows of factors * sum_a (predicted - target)^2; predicted and target
    (*seeds, B, A), weights and factors (*seeds, B).
    """
    # (*seeds, B, A) -> (*seeds, B). The sum over A, as published, is the squared norm; a mean would
    # scale the step size by 1 / A.
    error = (predicted - target).square().sum(-1)
    # Factors are not in the denominator: they come divided by a running mean, and dividing by their
    # sum in each batch would bias the weights.
    return weighted_mean(error if factors is None else factors * error, weights)


class PriorConfig(Config, Fits["Prior"], abstract=True):
    """The fields that all diffusion priors share.

    One of your own gives a `kind`, `modules` and `build`, which returns a `Prior`, or a subclass of
    it with another loss.
    """

    kind: str
    schedule: AnySchedule = VariancePreserving()
    prediction: AnyPrediction = Field(
        VelocityPrediction(), description="what the network predicts: velocity, or noise"
    )
    encoder: AnyEncoder = FlattenEncoder()
    # Published: Adam at 1e-4, batch 4096, 600k steps, no averaged weights. Shorter runs need the
    # larger rate, and averaging removes much of the noise that it leaves in the last weights.
    optimizer: Optimizer = Optimizer(learning_rate=1e-3, decay="cosine")
    batch_size: int = Field(256, ge=1)
    ema: float = Field(
        0.999,
        ge=0,
        lt=1,
        description=(
            "decay of the averaged weights that are used after training; 0 uses the last ones"
        ),
    )

    @abstractmethod
    def modules(self, spec: Spec, seed: Seed = 0, stream: str = "prior") -> tuple[Encoder, Network]:
        """The encoder and the score network, untrained."""

    @abstractmethod
    def build(self, spec: Spec, seed: Seed = 0, stream: str = "prior") -> Prior:
        """The trainable part; `stream` names its random numbers."""


class DiffusionPrior(PriorConfig):
    """Denoising score matching (Song et al., arXiv 2011.13456)."""

    kind: Literal["diffusion"] = "diffusion"
    network: AnyScore = ResidualScore()

    def modules(self, spec: Spec, seed: Seed = 0, stream: str = "prior") -> tuple[Encoder, Network]:
        """The encoder and the score network, untrained."""
        encoder = self.encoder.build(spec.normalizer.mean, spec.normalizer.std)
        return encoder, self.network.build(
            encoder.size, spec.actions.size, seed=seed, stream=stream
        )

    def build(self, spec: Spec, seed: Seed = 0, stream: str = "prior") -> Prior:
        """The trainable part; `stream` names its random numbers."""
        return Prior(self, spec, seed, stream)


class Prior(Part):
    """The trainable diffusion model; `denoiser` is what samplers and extractors use."""

    config: PriorConfig

    def __init__(self, config: PriorConfig, spec: Spec, seed: Seed, stream: str = "prior"):
        super().__init__(config, config.optimizer, config.batch_size, spec, seed)
        self.stream = stream
        self.encoder, self.network = config.modules(spec, seed, stream)
        # A copy that is never descended: `follow` alone moves it.
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)

    def loss(self, batch: Batch, step: int, factors: Tensor | None = None) -> Tensor:
        """E[factors * |network(a_t, t) - target|^2] with a_t = alpha(t) a + sigma(t) noise,
        (*seeds); factors (*seeds, B) default to 1. The target is that of `prediction`.
        """
        # The noise read from the minimiser is E[noise | s, a_t] = -sigma grad log pi_D,t(a_t | s):
        # denoising score matching (arXiv 2011.13456, equation 7).
        schedule, size = self.config.schedule, batch.actions.shape[-2:]
        # size is (B, A); t (*seeds, B) and noise (*seeds, B, A): one time and one noise per row.
        # Streams are named by step, so a resumed run draws the same numbers.
        t = schedule.training_times(
            rand(self.seed, f"{self.stream}/time", step, size[:1], self.device)
        )
        noise = randn(self.seed, f"{self.stream}/noise", step, size, self.device)
        predicted = self.network(
            self.encoder(batch.observations),
            schedule.noise(batch.actions, t, noise),
            schedule.features(t),
        )
        target = self.config.prediction.target(
            batch.actions, noise, schedule.alpha(t)[..., None], schedule.sigma(t)[..., None]
        )
        return denoising_loss(predicted, target, batch.weights, factors)

    def follow(self, step: int) -> None:
        """Move the averaged weights towards the live ones; the decay rises from 0.1 to `ema`, so
        that early weights are forgotten.
        """
        # rate = 1 - decay, with decay min(ema, (1 + n) / (10 + n)) at step n. A constant 0.999
        # would still carry e^-1 of the initial weights after 1000 steps.
        average(self.averaged, self.network, 1 - min(self.config.ema, (1 + step) / (10 + step)))

    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """One step of training."""
        loss = self.loss(batch, step)
        self.descend(loss, step)
        self.follow(step)
        return {"loss": loss.detach()}

    def identity(self, data: Transitions) -> str:
        """See `Part.identity`. Rewards are not read."""
        return self.config.digest(
            part=type(self).__name__, seed=self.seed, data=data.spec.behaviour_fingerprint
        )

    def denoiser(self, features: Tensor) -> Denoiser:
        """The averaged network as a denoiser at these features (*seeds, ..., F), broadcast
        against its x (*seeds, ..., A).
        """
        return network_denoiser(self.averaged, features, self.config)


def network_denoiser(network: Network, features: Tensor, config: PriorConfig) -> Denoiser:
    """The network of a prior as (x, t) -> predicted noise, t a scalar tensor."""
    schedule, prediction = config.schedule, config.prediction

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        # (4,) -> (1, ..., 1, 4), so that it broadcasts against x; the features keep their own batch
        # axes.
        time = schedule.features(t).reshape(*(1,) * (x.ndim - 1), -1)
        output: Tensor = network(features, x, time)
        return prediction.noise(output, x, schedule.alpha(t), schedule.sigma(t))

    return denoise


AnyPrior = Annotated[DiffusionPrior | PriorConfig, Door("ddice.priors")]
