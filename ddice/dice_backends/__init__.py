"""Backends: from data to distribution ratios, values and Q."""

from typing import Annotated

from pydantic import Field

from ddice.core.plugins import BACKENDS, PluginKinds
from ddice.dice_backends.advantage import AdvantageHead
from ddice.dice_backends.base import Backend, BackendConfig
from ddice.dice_backends.diagnostics import ratio_metrics
from ddice.dice_backends.given import Given, GivenRatio
from ddice.dice_backends.optidice import OptiDice
from ddice.dice_backends.orthogonal import OrthogonalDice
from ddice.dice_backends.q_function import QConfig, QFunction
from ddice.dice_backends.semi_gradient import FDice, PiecewiseF
from ddice.dice_backends.state_correction import CorrectedRatio, StateCorrection
from ddice.dice_backends.value_only import DeterministicDice

AnyBackend = Annotated[
    PiecewiseF | FDice | DeterministicDice | OrthogonalDice | OptiDice | GivenRatio,
    Field(discriminator="kind"),
    PluginKinds(BACKENDS, BackendConfig),
]

__all__ = [
    "AdvantageHead",
    "AnyBackend",
    "Backend",
    "BackendConfig",
    "CorrectedRatio",
    "DeterministicDice",
    "FDice",
    "Given",
    "GivenRatio",
    "OptiDice",
    "OrthogonalDice",
    "PiecewiseF",
    "QConfig",
    "QFunction",
    "StateCorrection",
    "ratio_metrics",
]
