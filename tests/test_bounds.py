"""Values that no training stands are refused when they are given, by the name of their field."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ddice.dice_backends import PiecewiseF
from ddice.diffusion.networks import MLP


@pytest.mark.parametrize("hidden", [(0,), (-1,), (8, 0), (8, -3, 8)])
def test_a_layer_has_at_least_one_unit(hidden: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        MLP(hidden=hidden)
    assert MLP(hidden=(1,)).hidden == (1,)
    assert MLP(hidden=()).hidden == ()


@pytest.mark.parametrize("temperature", [1e308, 1e31, 1e-31, 5e-324])
def test_a_temperature_can_be_divided_by(temperature: float) -> None:
    with pytest.raises(ValidationError, match="expected a temperature between 1e-30 and 1e"):
        PiecewiseF(temperature=temperature)
    assert PiecewiseF(temperature=1e-30).temperature == 1e-30
    assert PiecewiseF(temperature=1e30).temperature == 1e30
