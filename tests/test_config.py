from __future__ import annotations

import math
import subprocess
import sys
from abc import abstractmethod
from typing import Any, Literal

import pytest
from pydantic import Field, SerializeAsAny, ValidationError

from ddice.core.config import Config, unknown_name
from ddice.data.spec import RewardSummary
from ddice.diffusion.solvers import DDIM
from ddice.runs.recipe import Recipe


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
    code = "from ddice.diffusion.solvers import DDIM; print(DDIM(evaluations=5).digest(seed=3))"
    prints = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    }
    assert prints == {DDIM(evaluations=5).digest(seed=3)}


class Shape(Config, abstract=True):
    kind: str
    size: float = 1.0

    @abstractmethod
    def area(self) -> float:
        """Of the whole."""


class _Round(Shape, abstract=True):
    def area(self) -> float:
        return 3 * self.size**2


class Square(Shape):
    kind: Literal["square"] = "square"

    def area(self) -> float:
        return self.size**2


class Disc(_Round):
    kind: Literal["disc"] = "disc"


class Drawing(Config):
    shapes: tuple[Square | Disc, ...] = (Square(),)


def test_a_final_class_has_no_subclass() -> None:
    with pytest.raises(
        TypeError,
        match=(
            r"Disc is final, got class Ring\(Disc\): .* saved and loaded as Disc\. Derive from "
            r'Shape, class Mine\(Shape\), with a kind of its own, kind: Literal\["mine"\] = "mine"'
        ),
    ):

        class Ring(Disc):
            pass

    with pytest.raises(
        TypeError,
        match=(
            r"Optimiser is final, got class Mine\(Optimiser\): .*class Mine\(Config\), that holds "
            "a Optimiser as a field"
        ),
    ):

        class Mine(Optimiser):
            momentum: float = 0.9

    class Triangle(_Round):
        kind: Literal["triangle"] = "triangle"

    assert Triangle(size=2).area() == 12


def test_an_abstract_class_is_not_made() -> None:
    message = r"Shape is abstract: make one of Disc, Square.*, or of .* class Mine\(Shape\)"
    with pytest.raises(TypeError, match=message):
        Shape()  # type: ignore[abstract, call-arg]
    with pytest.raises(TypeError, match=message):
        Shape.model_validate({"kind": "square"})
    with pytest.raises(TypeError, match=r"Config is abstract: make one of .*Drawing"):
        Config()


def test_a_final_class_is_complete() -> None:
    with pytest.raises(
        TypeError, match=r"class Line lacks area: define what Shape asks for, or say abstract=True"
    ):

        class Line(Shape):
            kind: Literal["line"] = "line"

    with pytest.raises(
        TypeError, match=r'class Blob needs a kind of its own: kind: Literal\["a_name"\] = "a_name"'
    ):

        class Blob(_Round):
            pass


def test_digest_sees_the_class() -> None:
    """Of two classes with the same fields, nested ones too."""

    def made() -> type[Config]:
        class Optimiser(Config):
            learning_rate: float = 1e-3
            steps: int = 10

        return Optimiser

    other = made()()
    assert other.model_dump() == Optimiser().model_dump()
    assert other.digest() != Optimiser().digest()

    class Holder(Config):
        inner: SerializeAsAny[Config]
        more: tuple[SerializeAsAny[Config], ...] = ()
        named: dict[str, SerializeAsAny[Config]] = Field(default_factory=dict)

    mine = Optimiser()
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"inner": other}, {"inner": mine}),
        ({"inner": mine, "more": (mine, other)}, {"inner": mine, "more": (mine, mine)}),
        ({"inner": mine, "named": {"a": other}}, {"inner": mine, "named": {"a": mine}}),
    ]
    for one, two in pairs:
        assert Holder(**one).model_dump() == Holder(**two).model_dump()
        assert Holder(**one).digest() != Holder(**two).digest()
        left_out = list(one)
        assert Holder(**one).digest(without=left_out) == Holder(**two).digest(without=left_out)


def test_digest_forgets_no_part_when_a_module_of_ours_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = DDIM().digest(), Disc().digest()
    monkeypatch.setattr(DDIM, "__module__", "ddice.elsewhere")
    monkeypatch.setattr(Disc, "__module__", "elsewhere")
    after = DDIM().digest(), Disc().digest()
    assert before[0] == after[0]
    assert before[1] != after[1]


# -- numbers that would only fail later


@pytest.mark.parametrize(
    ("fields", "name", "message"),
    [
        ({"backend": {"value_weight": 1e31}}, "value_weight", "at most 1e.30"),
        ({"backend": {"optimizer": {"learning_rate": 1e300}}}, "learning_rate", "at most 1e.30"),
        ({"extractor": {"guidance": {"log_floor": -1e308}}}, "log_floor", "at most 1e.30"),
        ({"prior": {"schedule": {"beta_max": 1e31}}}, "beta_max", "at most 1e.30"),
        ({"steps": {"prior": 10**400}}, "steps.prior", "at most 2,147,483,647"),
        ({"prior": {"batch_size": 2**31}}, "batch_size", "at most 2,147,483,647"),
        ({"backend": {"value": {"hidden": [8, 10**400]}}}, "hidden", "at most 2,147,483,647"),
        ({"backend": {"value": {"hidden": [0]}}}, "hidden", "greater than or equal to 1"),
        ({"backend": {"value": {"hidden": [-1]}}}, "hidden", "greater than or equal to 1"),
        ({"backend": {"value_weight": -1}}, "value_weight", "greater than 0"),
        ({"prior": {"schedule": {"beta_max": 0.01}}}, "schedule", "at least beta_min"),
        ({"data": {"reference_scores": [0, 1e308]}}, "reference_scores", "at most 1e.30"),
    ],
)
def test_numbers_that_would_fail_in_training_are_refused_where_they_are_given(
    fields: dict[str, Any], name: str, message: str
) -> None:
    with pytest.raises(ValidationError, match=message) as refused:
        Recipe.model_validate(fields)
    assert name in ".".join(map(str, refused.value.errors()[0]["loc"]))


def test_seeds_and_measured_numbers_may_be_of_any_size() -> None:
    assert Recipe(seed=10**30).seed == 10**30
    assert RewardSummary(mean=1e38, std=0.0).mean == 1e38
