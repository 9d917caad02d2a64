"""The strength of the f-divergence penalty: a number in reward units, or a target that finds it,
such as "ess:0.3".
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

# float32 ends near 1e-38 and 1e38: this leaves eight decades for the advantage that is divided.
SMALLEST, LARGEST = 1e-30, 1e30


def _check_temperature(value: Any) -> Any:
    if (
        isinstance(value, str)
        and (match := re.fullmatch(r"ess:(0?\.\d+)", value))
        and 0 < float(match[1]) < 1
    ):
        return value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(
                "expected a positive number or a target effective sample size such as "
                f'"ess:0.3", got {value!r}'
            ) from None
    if value <= 0:
        raise ValueError(f"the temperature must be positive, got {value}")
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(
            f"expected a temperature between {SMALLEST:g} and {LARGEST:g}, which float32 can "
            f"divide by, got {value}"
        )
    return value


Temperature = Annotated[float | str, BeforeValidator(_check_temperature)]
