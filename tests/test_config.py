from __future__ import annotations

import math
import subprocess
import sys

import pytest
from pydantic import Field, ValidationError

from ddice.core.config import Config, unknown_name


class Optimiser(Config):
    learning_rate: float = Field(1e-3, gt=0)
    steps: int = 10


class Experiment(Config):
    name: str = "first"
    optimiser: Optimiser = Optimiser()
    widths: tuple[int, ...] = (256, 256)


def test_an_unknown_key_is_told_its_neighbour() -> None:
    with pytest.raises(
        ValidationError,
        match=(
            r"unknown field of Optimiser 'learning_rat': did you mean 'learning_rate'\? known "
            r"are learning_rate, "
        ),
    ):
        Optimiser(learning_rat=1e-4)


def test_an_unknown_key_deep_in_a_tree_too() -> None:
    with pytest.raises(
        ValidationError, match=r"unknown field of Optimiser 'stesp': did you mean 'steps'\?"
    ):
        Experiment.model_validate_json('{"optimiser": {"stesp": 3}}')


def test_a_name_without_a_neighbour_lists_what_is_known() -> None:
    assert unknown_name("zzz", ["b", "a"], "backend") == "unknown backend 'zzz': known are a, b"
    assert unknown_name("optidise", ["piecewise", "optidice"], "backend") == (
        "unknown backend 'optidise': did you mean 'optidice'? known are optidice, piecewise"
    )


def test_frozen() -> None:
    config = Optimiser()
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 11
    assert hash(config) == hash(Optimiser())


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_values_that_make_no_sense_are_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="learning_rate"):
        Optimiser(learning_rate=value)


def test_defaults_are_validated_too() -> None:
    class Wrong(Config):
        rate: float = Field(-1.0, gt=0)

    with pytest.raises(ValidationError, match="rate"):
        Wrong()


def test_round_trip_through_json() -> None:
    config = Experiment(name="second", optimiser=Optimiser(learning_rate=0.3), widths=(1, 2, 3))
    assert Experiment.model_validate_json(config.model_dump_json()) == config


def test_digest_sees_every_field_and_every_extra() -> None:
    prints = [
        Experiment().digest(),
        Experiment(name="other").digest(),
        Experiment(optimiser=Optimiser(learning_rate=2e-3)).digest(),
        Experiment(optimiser=Optimiser(steps=11)).digest(),
        Experiment(widths=(256,)).digest(),
        Experiment().digest(seed=0),
        Experiment().digest(seed=1),
        Experiment().digest(seed=[0, 1]),
        Experiment().digest(data="0"),
    ]
    assert len(set(prints)) == len(prints)
    assert all(len(text) == 32 and set(text) <= set("0123456789abcdef") for text in prints)


def test_digest_ignores_the_order_of_writing() -> None:
    assert Experiment(name="x", widths=(1,)).digest(a=1, b=2) == Experiment(
        widths=(1,), name="x"
    ).digest(b=2, a=1)


def test_digest_is_the_same_in_another_process() -> None:
    """Trained parts are found again by it: Python's own salted hash would not do."""
    code = (
        "from ddice.core.config import Config\nclass A(Config):\n    x: float = 0.1\n"
        "print(A().digest(seed=3))"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    }

    class A(Config):
        x: float = 0.1

    assert prints == {A().digest(seed=3)}
