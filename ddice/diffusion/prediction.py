"""What the network of a prior predicts, from which the noise in an action follows."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

from ddice.core.config import Config, from_kind
from ddice.diffusion.networks.operations import noise_of_velocity


class Prediction(Config, abstract=True):
    """What a network regresses, and how noise is read from its output.

    alpha and sigma are those of x = alpha a + sigma noise, and broadcast against it.
    """

    kind: str

    @abstractmethod
    def target(
        self,
        actions: Tensor,  # (..., A)
        noise: Tensor,  # (..., A)
        alpha: Tensor,  # (..., 1)
        sigma: Tensor,  # (..., 1)
    ) -> Tensor:
        """The numbers (..., A) whose mean, given x, the network learns."""

    @abstractmethod
    def noise(
        self,
        output: Tensor,  # (..., A)
        x: Tensor,  # (..., A)
        alpha: Tensor,  # (..., 1)
        sigma: Tensor,  # (..., 1)
    ) -> Tensor:
        """The noise (..., A) that an output stands for."""


class NoisePrediction(Prediction):
    """The noise itself (arXiv 2011.13456), as published.

    The clean action (x - sigma noise) / alpha multiplies the network's error by sigma / alpha, 150
    at t = 1.
    """

    kind: Literal["noise"] = "noise"

    def target(self, actions: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def noise(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output


class VelocityPrediction(Prediction):
    """v = alpha noise - sigma a (arXiv 2202.00512, appendix D): noise = alpha v + sigma x, and the
    clean action alpha x - sigma v.

    As alpha^2 + sigma^2 = 1, noise - alpha v - sigma x is 0. An error of v is at most that large in
    the clean action at any time; its square weighs 1 / alpha^2 of that of the noise, so that a
    network learns the actions of a state where x says nothing of them.
    """

    kind: Literal["velocity"] = "velocity"

    def target(self, actions: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noise - sigma * actions

    def noise(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise_of_velocity(output, x, alpha, sigma)


AnyPrediction = Annotated[
    Annotated[VelocityPrediction | NoisePrediction, Field(discriminator="kind")],
    BeforeValidator(from_kind),
]
