"""One small example of every member of every union: what conformance, exactness, options, the
command line and the tests of whole trainings go through.

A new member needs its file, its place in the union, and one line here. Where the line is missing,
`require_examples` says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ddice.core.config import Config
from ddice.core.plugins import members
from ddice.data import Batch
from ddice.dice_backends import (
    DeterministicDice,
    FDice,
    GivenRatio,
    Iql,
    OptiDice,
    OrthogonalDice,
    PiecewiseF,
)
from ddice.diffusion.networks import FlattenEncoder, PublishedScore, ResidualScore
from ddice.diffusion.samplers import Actor, Diffusion, Gaussian
from ddice.diffusion.schedule import VariancePreserving
from ddice.diffusion.solvers import DDIM, MultiStep, SingleStep
from ddice.extractors import (
    GaussianBC,
    GuideThenSelect,
    PolicyGradient,
    SelectOnly,
    WeightedBC,
)
from ddice.testing.exact import (
    KINDS,
    Solution,
    dual,
    implicit,
    orthogonal_dual,
    semi_gradient,
)
from ddice.testing.fixed_points import as_table, train, train_orthogonal_limit
from ddice.testing.tabular import Array, Problem, random_problem

Fields = Mapping[str, Any]
NETWORK: Fields = {"hidden": [8]}
HEAD: Fields = {"network": NETWORK}
SCORE: Fields = {"network": {"width": 8, "blocks": 1}}
SOLVER: Fields = {"kind": "ddim", "evaluations": 2}
ROWS = 16


@dataclass(frozen=True)
class Example:
    """A part on networks of a few units; `fields` as JSON would give them."""

    part: type[Config]
    fields: Fields = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return str(self.part.model_fields["kind"].default)

    @property
    def config(self) -> Any:
        return self.part.model_validate(dict(self.fields))


@dataclass(frozen=True)
class SolverExample(Example):
    """A solver and the order that it declares."""

    order: int = field(kw_only=True)


def full_batch(
    config: Any,
    problem: Problem,
    steps: int,
) -> Array:  # (rows of the problem,)
    """Ratios after `steps` steps on one weighted batch that holds the whole problem."""
    data = problem.data()
    part = config.build(data.spec)
    train(part, data.full(), steps)
    ratio: Array = part.ratio(data.full()).numpy()
    return ratio


@dataclass(frozen=True)
class FixedPoint:
    """Where a backend must arrive on a finite problem when its networks are tables.

    solve: (problem, divergence, temperature, discount) -> the exact answer, never from the backend
    itself. divergences: those for which it is asked; a field `divergence` is set to each.
    """

    solve: Callable[[Problem, str, float, float], Solution]
    steps: int
    learning_rate: float = 0.1
    divergences: tuple[str, ...] = KINDS
    problem: Problem = field(default_factory=lambda: finite_problem())
    on: str = ""  # what the problem is like, where that matters
    ratios: Callable[[Any, Problem, int], Array] = full_batch

    def configure(self, config: Any, divergence: str, temperature: float, discount: float) -> Any:
        """The example with tables for networks, and this divergence where it has one."""
        table = as_table(
            config, temperature=temperature, discount=discount, learning_rate=self.learning_rate
        )
        if "divergence" not in type(table).model_fields:
            return table
        return type(table)(**{**dict(table), "divergence": divergence})


@dataclass(frozen=True)
class BackendExample(Example):
    """A backend, and what it is measured against; a text says why that is nothing."""

    exact: FixedPoint | str = field(kw_only=True)


def finite_problem(branches: int = 3, loops: bool = True) -> Problem:
    """Six states and three actions; half of the pairs may terminate."""
    return random_problem(2, states=6, actions=3, terminate=0.5, branches=branches, loops=loops)


def orthogonal_limit(problem: Problem, kind: str, temperature: float, discount: float) -> Solution:
    """Where the default trade-off of 0.6 leads the orthogonal backend."""
    return orthogonal_dual(problem, kind, temperature, discount, 0.6)


def published_expectile(
    problem: Problem, kind: str, temperature: float, discount: float
) -> Solution:
    """Where the default expectile of 0.7 and the default cap of 100 lead IQL, which has no
    divergence.
    """
    return implicit(problem, 0.7, temperature, discount, math.log(100))


def twice_above(batch: Batch) -> Tensor:
    """w (B,): twice the weight where the first action is positive."""
    return 1.0 + (batch.actions[..., 0] > 0).float()


def first_action(
    observations: Tensor,  # (B, S)
    actions: Tensor,  # (B, A)
) -> Tensor:
    """Q (1, B) of one member: the larger first action is the better one."""
    return actions[..., 0][None]


HERE = __name__
CERTAIN = finite_problem(branches=1)
LOOPLESS = finite_problem(branches=1, loops=False)
PAIR: Fields = {"value": NETWORK, "critic": NETWORK, "batch_size": ROWS}
ALONE: Fields = {"value": NETWORK, "advantage": HEAD, "batch_size": ROWS}
GIVEN: Fields = {"source": f"{HERE}:twice_above", "q": f"{HERE}:first_action"}
GUIDED: Fields = {"guidance": {"network": NETWORK, "batch_size": ROWS}, "solver": SOLVER}
PIECEWISE = FixedPoint(semi_gradient, 700, divergences=("piecewise",))
SURE = FixedPoint(semi_gradient, 700, problem=CERTAIN, on="deterministic dynamics")
DUAL = FixedPoint(dual, 2500, 0.05)
EXPECTILE = FixedPoint(published_expectile, 700, divergences=("expectile 0.7",))
LIMIT = FixedPoint(
    orthogonal_limit,
    400,
    0.05,
    ("soft_chi2",),
    LOOPLESS,
    "true gradient, deterministic dynamics without loops",
    train_orthogonal_limit,
)

BACKENDS: tuple[BackendExample, ...] = (
    BackendExample(PiecewiseF, PAIR, exact=PIECEWISE),
    BackendExample(FDice, {**PAIR, "divergence": "kl"}, exact=FixedPoint(semi_gradient, 700)),
    BackendExample(Iql, PAIR, exact=EXPECTILE),
    BackendExample(DeterministicDice, ALONE, exact=SURE),
    BackendExample(OrthogonalDice, ALONE, exact=LIMIT),
    BackendExample(OptiDice, ALONE, exact=DUAL),
    BackendExample(GivenRatio, GIVEN, exact="its ratios are given, nothing is learned"),
)
EXTRACTORS: tuple[Example, ...] = (
    Example(GuideThenSelect, {"candidates": 2, **GUIDED}),
    Example(WeightedBC, {"candidates": 2, "batch_size": ROWS, "solver": SOLVER}),
    Example(GaussianBC, {"candidates": 2, "batch_size": ROWS, "network": NETWORK}),
    Example(PolicyGradient, {"batch_size": ROWS, "network": NETWORK}),
    Example(SelectOnly, {"candidates": 2, "solver": SOLVER}),
)
SAMPLERS: tuple[Example, ...] = (
    Example(
        Diffusion,
        {"prior": {"kind": "diffusion", **SCORE}, "solver": {"kind": "ddim", "evaluations": 3}},
    ),
    Example(Gaussian, {"network": NETWORK}),
    Example(Actor, {"network": NETWORK}),
)
SOLVERS: tuple[SolverExample, ...] = (
    SolverExample(DDIM, order=1),
    SolverExample(SingleStep, order=2),
    SolverExample(MultiStep, order=2),
)
SCORES: tuple[Example, ...] = (
    Example(ResidualScore, {"width": 8, "blocks": 1}),
    Example(PublishedScore, {"widths": [16, 8, 8]}),
)
SCHEDULES: tuple[Example, ...] = (Example(VariancePreserving),)
ENCODERS: tuple[Example, ...] = (Example(FlattenEncoder),)


def require_examples(union: Any, examples: Iterable[Example], table: str) -> None:
    """Raise AssertionError that names every member of the union without a line in the table."""
    known = {example.part for example in examples}
    missing = [member.__name__ for member in members(union) if member not in known]
    lines = "; ".join(f"{name}: add Example({name}, {{...}})" for name in missing)
    if missing:
        raise AssertionError(
            f"expected an example of every member of the union, got none of {lines} to {table} in "
            "ddice/testing/catalogue.py (a backend's also says what it is measured against)"
        )
