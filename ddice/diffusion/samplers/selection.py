"""Selection: which of K candidates is played, by Q."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field, TypeAdapter, ValidatorFunctionWrapHandler, model_validator
from torch import Tensor

from ddice.core.config import Config, unknown_name
from ddice.parts.members import lower_bound, minimum


class Selection(Config, abstract=True):
    """How one of K candidates is chosen by the members of a critic.

    Abstract, but it can be called: `Selection(rule="lcb", coefficient=0.5)` is the member of
    `AnySelection` that has this rule, here a `LowerBoundSelection`, and `Selection()` a
    `MeanSelection`. A field that the rule does not read is refused.
    """

    rule: str

    samples: ClassVar[bool] = False  # whether `select` reads uniform numbers
    least_members: ClassVar[int] = 1  # of the critic

    def __new__(cls, *args: Any, **fields: Any) -> Selection:  # which Python hands to __init__ too
        chosen = _of_rule(fields.get("rule", "mean")) if cls is Selection else cls
        return super().__new__(chosen)

    @model_validator(mode="wrap")
    @classmethod
    def _choose(cls, values: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """`Selection.model_validate` gives a member too."""
        if cls is Selection:
            return TypeAdapter(AnySelection).validate_python(values)
        return handler(values)

    @abstractmethod
    def scores(self, q: Tensor) -> Tensor:
        """The members q (M, ...) reduced to the numbers that candidates are ranked by, (...)."""

    def select(self, q: Tensor, uniform: Tensor | None) -> Tensor:
        """q (M, B, K), and uniform numbers (B,) for a rule that samples -> indices (B,); without
        them the argmax of the scores is taken.
        """
        # a = argmax_k Q(s, a_k) (arXiv 2407.20109): (M, B, K) -> (B, K) -> (B,). Candidates come
        # from near the data, where Q can be trusted; an argmax over all actions would find its
        # errors.
        return self.scores(q).argmax(-1)

    def check_members(self, members: int) -> None:
        """Raise ValueError when the critic has fewer members than the rule compares."""
        if members < self.least_members:
            raise ValueError(
                f'the selection rule "{self.rule}" compares the members of the critic, at least '
                f"{self.least_members}, and this one has {members}: give it more members, or "
                'select by "mean"'
            )


class MeanSelection(Selection):
    """argmax of the mean over members."""

    rule: Literal["mean"] = "mean"

    def scores(self, q: Tensor) -> Tensor:
        # (M, ...) -> (...). Errors of members that differ cancel in part in their mean.
        return q.mean(0)


class MinimumSelection(Selection):
    """argmax of the minimum over members."""

    rule: Literal["minimum"] = "minimum"

    def scores(self, q: Tensor) -> Tensor:
        return minimum(q, 0)


class SoftmaxSelection(Selection):
    """A sample from softmax(mean over members / temperature); deterministic, its argmax."""

    rule: Literal["softmax"] = "softmax"
    temperature: float = Field(1.0, gt=0, description="in units of Q")

    samples = True

    def scores(self, q: Tensor) -> Tensor:
        return q.mean(0)

    def select(self, q: Tensor, uniform: Tensor | None) -> Tensor:
        # The published AntMaze runs sample in this way, by the first Q of the pair alone.
        scores = self.scores(q)
        if uniform is None:
            return scores.argmax(-1)
        # Inversion: the first candidate whose cumulative share reaches the uniform number. The
        # last cumulative share is 1 up to rounding, so uniform numbers are taken as shares of it.
        cumulative = torch.softmax(scores / self.temperature, -1).cumsum(-1)
        # (B, 1) against cumulative (B, K).
        reached = uniform[:, None] * cumulative[:, -1:]
        # The count of shares below is the index of the first that is not: (B, K) -> (B,), at most
        # K - 1 for uniform numbers up to 1.
        return (cumulative < reached).sum(-1)


class LowerBoundSelection(Selection):
    """argmax of a lower confidence bound, mean - coefficient * sample deviation over members.

    The coefficient 0 is "mean". Two members and the coefficient 1 / sqrt(2) are "minimum".
    """

    rule: Literal["lcb"] = "lcb"
    coefficient: float = Field(
        1.0, ge=0, description="deviations below the mean; larger trusts the members less"
    )

    least_members = 2

    def scores(self, q: Tensor) -> Tensor:
        # With M - 1 = 0 the sample deviation is NaN, and the argmax of NaN would say nothing.
        self.check_members(len(q))
        return lower_bound(q, self.coefficient, 0)


AnySelection = Annotated[
    MeanSelection | MinimumSelection | SoftmaxSelection | LowerBoundSelection,
    Field(discriminator="rule"),
]


def _of_rule(rule: object) -> type[Selection]:
    union, _ = get_args(AnySelection)
    members = {member.model_fields["rule"].default: member for member in get_args(union)}
    if rule not in members:
        raise ValueError(unknown_name(str(rule), members, "rule"))
    chosen: type[Selection] = members[rule]
    return chosen
