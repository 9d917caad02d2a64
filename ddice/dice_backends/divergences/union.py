"""All divergences, and their names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from ddice.core.config import unknown_name
from ddice.core.plugins import Door
from ddice.dice_backends.divergences.alpha import Alpha
from ddice.dice_backends.divergences.divergence import FDivergence
from ddice.dice_backends.divergences.kl_below import Piecewise, SoftChi2
from ddice.dice_backends.divergences.numeric import NumericDivergence
from ddice.dice_backends.divergences.poles import (
    JensenShannon,
    LeCam,
    Neyman,
    ReverseKL,
    SquaredHellinger,
)
from ddice.dice_backends.divergences.smooth import KL, HalfPearson, Pearson
from ddice.dice_backends.divergences.total_variation import TotalVariation

BUILT_IN: tuple[type[FDivergence], ...] = (
    KL,
    ReverseKL,
    Pearson,
    HalfPearson,
    Neyman,
    SoftChi2,
    Piecewise,
    SquaredHellinger,
    JensenShannon,
    LeCam,
    Alpha,
    TotalVariation,
)


def _from_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if ":" in value:
        return {"kind": "numeric", "function": value}
    names = [cls.model_fields["kind"].default for cls in BUILT_IN]
    if value not in names:
        raise ValueError(unknown_name(value, names, "divergence"))
    return {"kind": value}


_Member = (
    KL
    | ReverseKL
    | Pearson
    | HalfPearson
    | Neyman
    | SoftChi2
    | Piecewise
    | SquaredHellinger
    | JensenShannon
    | LeCam
    | Alpha
    | TotalVariation
)


Divergence = Annotated[
    _Member | NumericDivergence | FDivergence,
    Door("ddice.divergences"),
    BeforeValidator(_from_name),
]
