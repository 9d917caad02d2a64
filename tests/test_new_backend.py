"""What a new backend needs: its file (here this one), its place in the union, one line of example.
Then it is covered, or what is missing is named.
"""

from __future__ import annotations

import functools
import operator
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
from pydantic import Field, TypeAdapter, create_model
from torch import Tensor

from ddice.core.plugins import members
from ddice.data import Batch, Spec
from ddice.dice_backends import (
    AnyBackend,
    Backend,
    BackendConfig,
    PiecewiseF,
    ratio_metrics,
)
from ddice.parts.part import weighted_mean
from ddice.runs.options import describe_fields
from ddice.testing import BACKEND_CHECKS, Problem, Solution, check_backend, policy_q
from ddice.testing.catalogue import (
    BACKENDS,
    NETWORK,
    BackendExample,
    FixedPoint,
    require_examples,
)

ROOT = Path(__file__).parent.parent


class Behaviour(BackendConfig):
    """The data's own policy: its value, and a ratio of 1."""

    kind: Literal["behaviour"] = "behaviour"
    patience: float = Field(1.0, gt=0, description="factor on the loss of V")

    def build(self, spec: Spec, seed: Any = 0) -> _Behaviour:
        return _Behaviour(self, spec, seed)


class _Behaviour(Backend):
    config: Behaviour
    ratio_kind: ClassVar[Literal["action"]] = "action"
    has_q = False

    @property
    def q(self) -> None:
        return None

    def log_ratio(self, batch: Batch) -> Tensor:
        return self.value(batch.observations).detach() * 0

    def update(self, batch: Batch, *, step: int) -> dict[str, Tensor]:
        goal = self.bootstrap(batch, self.value(batch.next_observations).detach())
        errors = (self.value(batch.observations) - goal).square()
        loss = self.config.patience * weighted_mean(errors, batch.weights)
        self.descend(loss, step)
        return {"loss": loss.detach(), **ratio_metrics(self.log_ratio(batch), batch.weights)}


def ones(problem: Problem, divergence: str, temperature: float, discount: float) -> Solution:
    """w = 1 and the values of the behaviour policy."""
    q = policy_q(problem, problem.behaviour, discount)
    return Solution((problem.behaviour * q).sum(1), q, np.ones_like(q))


LINE = BackendExample(
    Behaviour,
    {"value": NETWORK, "batch_size": 16},
    exact=FixedPoint(ones, 10, divergences=("none",)),
)
UNION = Annotated[
    functools.reduce(operator.or_, (*members(AnyBackend), Behaviour)), Field(discriminator="kind")
]


def test_without_its_line_the_backend_is_named() -> None:
    with pytest.raises(AssertionError, match=r"Behaviour: add Example\(Behaviour, .* BACKENDS in"):
        require_examples(UNION, BACKENDS, "BACKENDS")
    require_examples(UNION, (*BACKENDS, LINE), "BACKENDS")


def test_a_line_says_what_the_backend_is_measured_against() -> None:
    with pytest.raises(TypeError, match="exact"):
        BackendExample(Behaviour, {})


@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__)
def test_with_its_line_it_conforms(check: Any) -> None:
    check_backend(LINE.config, checks=[check])


def test_with_its_line_it_is_measured_and_looked_for_in_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import exactness

    rows = list(exactness.backend_rows(LINE))
    assert [row.case for row in rows] == ["Behaviour, none"] * 3
    assert all(row.kept for row in rows)
    page = (ROOT / "docs" / "exactness.md").read_text()
    assert exactness.missing(page, (*BACKENDS, LINE)) == ["Behaviour"]
    written = f"{page}\n| {rows[0].case}, "
    assert exactness.missing(written, (*BACKENDS, LINE)) == []


def test_a_wrong_fixed_point_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import exactness

    (example,) = (each for each in BACKENDS if each.part is PiecewiseF)
    assert isinstance(example.exact, FixedPoint)
    wrong = FixedPoint(ones, example.exact.steps, divergences=("piecewise",))
    rows = list(exactness.backend_rows(BackendExample(PiecewiseF, example.fields, exact=wrong)))
    assert not rows[0].kept
    assert not rows[1].kept


def test_in_the_union_it_has_options_and_comes_back_from_json() -> None:
    model = create_model("Model", backend=(UNION, PiecewiseF()))
    lines = [line.strip() for line in describe_fields(model)]
    assert any(line.startswith("--backend.kind  {") and ",behaviour}" in line for line in lines)
    assert any(line.startswith("--backend.patience  float = 1.0") for line in lines)
    config = LINE.config
    assert TypeAdapter(UNION).validate_json(config.model_dump_json()) == config
