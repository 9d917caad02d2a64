"""Networks as plans: lists of layers that run forwards, backwards by hand, and inside engines."""

from ddice.diffusion.networks.encoder import (
    AnyEncoder,
    Encoder,
    EncoderConfig,
    FlattenEncoder,
    StandardEncoder,
)
from ddice.diffusion.networks.mlp import MLP, Activation
from ddice.diffusion.networks.network import Initialisation, Network
from ddice.diffusion.networks.operations import NORM_EPS, OPERATIONS, Operation
from ddice.diffusion.networks.plan import Layer
from ddice.diffusion.networks.scores import AnyScore, PublishedScore, ResidualScore, Score
from ddice.diffusion.networks.time import TIME_FEATURES, AnyTime, FourierTime, SmoothTime, Time

__all__ = [
    "MLP",
    "NORM_EPS",
    "OPERATIONS",
    "TIME_FEATURES",
    "Activation",
    "AnyEncoder",
    "AnyScore",
    "AnyTime",
    "Encoder",
    "EncoderConfig",
    "FlattenEncoder",
    "FourierTime",
    "Initialisation",
    "Layer",
    "Network",
    "Operation",
    "PublishedScore",
    "ResidualScore",
    "Score",
    "SmoothTime",
    "StandardEncoder",
    "Time",
]
