"""Samplers: from observations and noise to candidate actions."""

from typing import Annotated

from ddice.core.plugins import Door
from ddice.diffusion.samplers.actor import Actor, ActorSampler
from ddice.diffusion.samplers.base import Sampler, SamplerConfig
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

AnySampler = Annotated[Diffusion | Gaussian | Actor | SamplerConfig, Door("ddice.samplers")]

__all__ = [
    "Actor",
    "ActorSampler",
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
    "SamplerConfig",
    "Selection",
    "SoftmaxSelection",
]
