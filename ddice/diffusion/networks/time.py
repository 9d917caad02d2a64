"""How networks see the noise level."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from ddice.core.config import Config
from ddice.core.plugins import Door
from ddice.diffusion.networks.network import Network

TIME_FEATURES = 4  # (t, log_snr / 5, alpha, sigma): what a noise schedule tells a network


class Time(Config, abstract=True):
    """How a network reads the noise level. One of your own gives a `kind` and `layers`."""

    kind: str

    @abstractmethod
    def layers(self, network: Network, time: str) -> str:
        """Append layers that read the input `time`, `TIME_FEATURES` numbers, to a network; the name
        of their output.
        """


class SmoothTime(Time):
    """The four smooth features of the noise level as they are: no frequencies, so a network can
    learn to ignore time at first.
    """

    kind: Literal["smooth"] = "smooth"

    def layers(self, network: Network, time: str) -> str:
        return time


class FourierTime(Time):
    """Random Fourier features of t with frozen frequencies (the published choice)."""

    kind: Literal["fourier"] = "fourier"
    size: int = Field(32, ge=2, multiple_of=2)
    # Frequencies of N(0, 30^2) turn about 30 times over t in [0, 1]: fine detail in t, at the price
    # of a rough start.
    scale: float = Field(30.0, gt=0)

    def layers(self, network: Network, time: str) -> str:
        # Reads t alone, the first of the features.
        return network.fourier(time, self.size, self.scale)


AnyTime = Annotated[SmoothTime | FourierTime | Time, Door("ddice.times")]
