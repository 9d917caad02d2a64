"""What everybody asks of a source of distribution ratios, written down once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor
from typing_extensions import Self

from ddice.data import Batch, Spec
from ddice.parts.stage import Trainable

# Action ratios reweight the actions at the states of the data. State-action ratios move the states
# too: d is an occupancy, and only its weighted mean of rewards is a policy's value.
RatioKind = Literal["action", "state-action"]
# The start in the Bellman flow d(s) = (1 - gamma) start(s) + gamma sum P(s | s', a') d(s', a').
FlowStart = Literal["initial", "data"]
QCallable = Callable[[Tensor, Tensor], Tensor]


class RatioSource(Trainable, Protocol):
    """A source of ratios w, with values and Q where it has them: a trained backend, given ratios,
    or corrected ones.

    Extractors, corrections, off-policy estimates, training and comparisons ask for these members
    and for no others.
    """

    @property
    def spec(self) -> Spec:
        """Of the data that the ratios belong to."""

    @property
    def ratio_kind(self) -> RatioKind:
        """Whether w is pi(a | s) / pi_D(a | s) or d(s, a) / d^D(s, a)."""

    @property
    def starts_from(self) -> FlowStart:
        """Where the flow of a state-action ratio begins: first observations, or all of the data."""

    @property
    def discount(self) -> float | None:
        """gamma; None where none is known."""

    @property
    def temperature(self) -> Tensor | None:
        """Strength of the penalty, (*seeds); None where there is none."""

    @property
    def rewards(self) -> Callable[[Tensor], Tensor]:
        """Raw rewards -> those that values and Q are in units of."""

    @property
    def has_q(self) -> bool: ...

    @property
    def has_value(self) -> bool: ...

    @property
    def q(self) -> QCallable | None:
        """Observations (*seeds, B, S), actions (*seeds, B, A) in [-1, 1] -> (*seeds, M, B); None
        without `has_q`.
        """

    def value(
        self,
        observations: Tensor,  # (*seeds, B, S)
    ) -> Tensor:
        """V(s), (*seeds, B). Raises TypeError without `has_value`."""

    def log_ratio(self, batch: Batch) -> Tensor:
        """log w of each row, (*seeds, B), detached; may be -inf, never NaN."""

    def ratio(self, batch: Batch) -> Tensor:
        """w = exp(log_ratio), (*seeds, B)."""

    def select(self, index: int) -> Self:
        """The source of one seed out of several trained together."""
