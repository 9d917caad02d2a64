"""Backends: from data to distribution ratios, values and Q."""

from typing import Annotated

from ddice.core.plugins import Door
from ddice.dice_backends.advantage import AdvantageHead
from ddice.dice_backends.backup import LambdaReturns, OneStep
from ddice.dice_backends.base import Backend, BackendConfig
from ddice.dice_backends.calibration import CalibratedRatio, Calibration
from ddice.dice_backends.diagnostics import ratio_metrics
from ddice.dice_backends.given import GivenRatio, GivenRatioBackend
from ddice.dice_backends.iql import Iql
from ddice.dice_backends.optidice import OptiDice, RegressedExpectation, SampledExpectation
from ddice.dice_backends.orthogonal import OrthogonalDice
from ddice.dice_backends.q_function import QConfig, QFunction
from ddice.dice_backends.reduction import LowerBound, Minimum
from ddice.dice_backends.selector import AveragedCritic, CriticEnsemble
from ddice.dice_backends.semi_gradient import FDice, PiecewiseF
from ddice.dice_backends.state_correction import CorrectedRatio, StateCorrection
from ddice.dice_backends.value_only import DeterministicDice

AnyBackend = Annotated[
    PiecewiseF
    | FDice
    | Iql
    | DeterministicDice
    | OrthogonalDice
    | OptiDice
    | GivenRatio
    | BackendConfig,
    Door("ddice.backends"),
]

__all__ = [
    "AdvantageHead",
    "AnyBackend",
    "AveragedCritic",
    "Backend",
    "BackendConfig",
    "CalibratedRatio",
    "Calibration",
    "CorrectedRatio",
    "CriticEnsemble",
    "DeterministicDice",
    "FDice",
    "GivenRatio",
    "GivenRatioBackend",
    "Iql",
    "LambdaReturns",
    "LowerBound",
    "Minimum",
    "OneStep",
    "OptiDice",
    "OrthogonalDice",
    "PiecewiseF",
    "QConfig",
    "QFunction",
    "RegressedExpectation",
    "SampledExpectation",
    "StateCorrection",
    "ratio_metrics",
]
