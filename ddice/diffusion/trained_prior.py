"""What everybody asks of a trained prior, written down once."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from typing_extensions import Self

from ddice.core.randomness import Seed
from ddice.data import Spec, Transitions
from ddice.diffusion.networks import Encoder, Network
from ddice.diffusion.prior import PriorConfig
from ddice.diffusion.solvers import Denoiser


class TrainedPrior(Protocol):
    """The behaviour policy as a diffusion model, which is read and never trained.

    Extractors and pictures ask for these members and for no others.
    """

    @property
    def spec(self) -> Spec:
        """Of the data that the prior was trained on."""

    @property
    def config(self) -> PriorConfig:
        """How its networks are built, and the noise schedule that they know."""

    @property
    def seed(self) -> Seed: ...

    @property
    def seed_shape(self) -> tuple[int, ...]:
        """(), or the number of seeds trained together."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def batch_size(self) -> int: ...

    @property
    def encoder(self) -> Encoder: ...

    @property
    def averaged(self) -> Network:
        """The score network that acts: features (*seeds, ..., F), noised actions (*seeds, ..., A)
        and the features of their times -> what `config.prediction` names (*seeds, ..., A).
        """

    def denoiser(
        self,
        features: Tensor,  # (*seeds, ..., F)
    ) -> Denoiser:
        """`averaged` at these features, as x (*seeds, ..., A), t -> the noise that it predicts."""

    def identity(self, data: Transitions) -> str:
        """Names all that the prior depends on, but the number of its own steps."""

    def select(self, index: int) -> Self:
        """The prior of one seed out of several trained together."""
