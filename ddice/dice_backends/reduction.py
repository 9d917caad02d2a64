"""How the members of a critic become the one Q that V and the ratio see."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

from ddice.core.config import Config, from_kind
from ddice.parts.members import lower_bound, minimum

MEMBERS = -2  # the axis of the members in (*seeds, M, B)


class Reduction(Config, abstract=True):
    """From Q of each member to one Q."""

    kind: str

    @abstractmethod
    def check_members(self, members: int) -> None:
        """Raise ValueError where a critic of so many members cannot be reduced."""

    @abstractmethod
    def reduce(
        self,
        q: Tensor,  # (*seeds, M, B)
    ) -> Tensor:
        """One Q, (*seeds, B)."""


class Minimum(Reduction):
    """The smallest member: clipped double Q (arXiv 1802.09477) with two of them."""

    kind: Literal["minimum"] = "minimum"

    def check_members(self, members: int) -> None:
        """One member is its own minimum."""

    def reduce(self, q: Tensor) -> Tensor:
        return minimum(q, MEMBERS)


class LowerBound(Reduction):
    """mean - pessimism * sample deviation over members: caution that does not grow with their
    number, as in ensembles of ten (DAC, arXiv 2405.20555).
    """

    kind: Literal["lower_bound"] = "lower_bound"
    pessimism: float = Field(
        1.0, ge=0, description="deviations below the mean of the members; 0 is the mean"
    )

    def check_members(self, members: int) -> None:
        if self.pessimism and members < 2:
            raise ValueError(
                f"pessimism = {self.pessimism:g} counts deviations between members of the critic, "
                f"at least 2, got critic_members = {members}: give it more members, or "
                "pessimism = 0"
            )

    def reduce(self, q: Tensor) -> Tensor:
        return lower_bound(q, self.pessimism, MEMBERS)


AnyReduction = Annotated[
    Annotated[Minimum | LowerBound, Field(discriminator="kind")],
    BeforeValidator(from_kind),
]
