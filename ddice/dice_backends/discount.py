"""gamma: a number, or "horizon", which takes it from the data."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ddice.data import Spec

HORIZON = "horizon"


def _check_discount(value: Any) -> Any:
    if value == HORIZON:
        return value
    expected = f'expected a number from 0 to below 1, or "{HORIZON}", which takes it from the data'
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{expected}, got {value!r}") from None
    if not 0 <= number < 1:
        raise ValueError(f"{expected}, got {value!r}")
    return number


Discount = Annotated[
    float | str,
    BeforeValidator(_check_discount),
    Field(description='gamma, or "horizon": what `ddice data check` derives from the episodes'),
]


def resolve_discount(discount: float | str, spec: Spec) -> float:
    """The number, or for "horizon" that of the data, see `ddice.data.horizon.Horizon.discount`.

    Raises ValueError for "horizon" on data without episodes.
    """
    if not isinstance(discount, str):
        return discount
    if spec.horizon is None:
        raise ValueError(
            f'discount="{HORIZON}" is read off whole episodes, and these are independent '
            "transitions: give a number, such as 0.99, or data with terminations and truncations, "
            "or episode_ids"
        )
    return spec.horizon.discount
