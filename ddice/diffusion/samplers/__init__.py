"""Samplers: from observations and noise to candidate actions."""

from typing import Annotated

from pydantic import Field

from ddice.diffusion.samplers.reference import (
    Diffusion,
    DiffusionSampler,
    Gaussian,
    GaussianSampler,
)
from ddice.diffusion.samplers.selection import (
    AnySelection,
    LowerBoundSelection,
    MeanSelection,
    MinimumSelection,
    Selection,
    SoftmaxSelection,
)

AnySampler = Annotated[Diffusion | Gaussian, Field(discriminator="kind")]
Sampler = DiffusionSampler | GaussianSampler

__all__ = [
    "AnySampler",
    "AnySelection",
    "Diffusion",
    "DiffusionSampler",
    "Gaussian",
    "GaussianSampler",
    "LowerBoundSelection",
    "MeanSelection",
    "MinimumSelection",
    "Sampler",
    "Selection",
    "SoftmaxSelection",
]
