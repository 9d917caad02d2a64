"""Two policies on the same starts: the luck of the starts is in both, and leaves the difference."""

from __future__ import annotations

import numpy as np

from ddice.core import statistics
from ddice.core.config import Config
from ddice.policies.evaluation.scores import Evaluation


class PairedEvaluation(Config):
    """Episode i of both evaluations began with the same reset. Made by `paired`."""

    first: Evaluation
    second: Evaluation

    @property
    def label(self) -> str:
        """The units of the differences."""
        if self.first.label == self.second.label:
            return self.first.label
        return "raw returns: the two are scored by different references"

    @property
    def differences(self) -> tuple[float, ...]:
        """First - second, of every episode, in the order of the episodes."""
        same = self.first.label == self.second.label
        ones = self.first.scores if same else self.first.returns
        others = self.second.scores if same else self.second.returns
        return tuple(one - other for one, other in zip(ones, others, strict=True))

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.mean(self.differences)

    @property
    def better(self) -> float:
        """The share of the starts from which the first did better, draws counting one half."""
        differences = np.array(self.differences)
        return float(((differences > 0) + 0.5 * (differences == 0)).mean())

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The bootstrap interval of the mean difference: pairs are drawn, never taken apart."""
        return statistics.stratified_interval(self.differences, statistics.mean, level=level)

    def __str__(self) -> str:
        low, high = self.interval()
        return (
            f"first - second, {len(self.differences)} pairs with the same starts: "
            f"{self.mean:.2f} [{low:.2f}, {high:.2f}], better in {100 * self.better:.0f} %\n"
            f"          ({self.label}; in brackets the 95 % bootstrap interval over pairs)"
        )


def paired(first: Evaluation, second: Evaluation) -> PairedEvaluation:
    """Two evaluations as pairs. Raises ValueError unless they played the same episodes: the same
    environment, seed and number.
    """
    for name in ("env_id", "seed"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise ValueError(
                f"expected two evaluations of the same {name}, got {ours} and {theirs}: only "
                "episodes with the same start can be compared one by one"
            )
    if len(first.returns) != len(second.returns):
        raise ValueError(
            "expected two evaluations of as many episodes, got "
            f"{len(first.returns)} and {len(second.returns)}"
        )
    return PairedEvaluation(first=first, second=second)
