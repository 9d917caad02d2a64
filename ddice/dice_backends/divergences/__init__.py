"""f-divergences: one convex f each, its restricted conjugate, and the ratio that it implies."""

from ddice.dice_backends.divergences.alpha import Alpha
from ddice.dice_backends.divergences.divergence import FDivergence, exponent_cut, log_where_positive
from ddice.dice_backends.divergences.kl_below import Piecewise, SoftChi2
from ddice.dice_backends.divergences.numeric import NumericDivergence
from ddice.dice_backends.divergences.poles import (
    JensenShannon,
    LeCam,
    Neyman,
    ReverseKL,
    SquaredHellinger,
    pole_cut,
)
from ddice.dice_backends.divergences.smooth import KL, HalfPearson, Pearson
from ddice.dice_backends.divergences.total_variation import TotalVariation
from ddice.dice_backends.divergences.union import BUILT_IN, Divergence

__all__ = [
    "BUILT_IN",
    "KL",
    "Alpha",
    "Divergence",
    "FDivergence",
    "HalfPearson",
    "JensenShannon",
    "LeCam",
    "Neyman",
    "NumericDivergence",
    "Pearson",
    "Piecewise",
    "ReverseKL",
    "SoftChi2",
    "SquaredHellinger",
    "TotalVariation",
    "exponent_cut",
    "log_where_positive",
    "pole_cut",
]
