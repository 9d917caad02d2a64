"""V beside the returns that were observed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddice.data import Transitions
from ddice.parts.ratio_source import RatioSource


def correlation(
    values: Tensor,  # (N,)
    returns: Tensor,  # (N,)
) -> Tensor:  # ()
    """Pearson's; NaN where either side is constant."""
    x, y = (side.double() - side.double().mean() for side in (values, returns))
    cosine: Tensor = (x @ y) / (x.norm() * y.norm())
    return cosine


def bias(
    values: Tensor,  # (N,)
    returns: Tensor,  # (N,)
) -> Tensor:  # ()
    """mean(V - G), in deviations of G; NaN where all G are the same."""
    deviation = returns.double().std(correction=0)
    gap = (values.double() - returns.double()).mean()
    return torch.where(deviation > 0, gap / deviation, torch.nan)


@dataclass(frozen=True)
class Observed:
    """Returns of N rows as far as they were observed, and where the observation ended: in the units
    of a backend's values.
    """

    returns: Tensor  # (N,), discounted sums to the end of each row's episode
    ends: Tensor  # (N, S), the last next observation of that episode
    factors: Tensor  # (N,), discount^steps to there; 0 where a termination ended it

    @classmethod
    def of(
        cls,
        data: Transitions,
        index: Tensor,  # (N,), places in the data
        source: RatioSource,
        discount: float,
    ) -> Observed:
        """Read off whole episodes. Raises ValueError for independent transitions."""
        returns = data.returns_to_go(source.rewards(data.rewards), discount)[index]
        # Ones add up to the number of rows that are left, the row itself among them.
        left = data.returns_to_go(torch.ones_like(data.rewards), 1.0)[index]
        last = index + left.long() - 1
        factors = torch.where(data.terminations[last], 0.0, discount**left)
        return cls(returns, data.next_observations[last], factors)

    def completed(self, source: RatioSource) -> Tensor:  # (N,)
        """G = sum_k discount^k r_k + discount^n V(s_n): the observed return, and the source's own
        value of what an episode that was cut would have brought.
        """
        # Without the second term every V would seem too high near a cut.
        return self.returns + self.factors * source.value(self.ends)
