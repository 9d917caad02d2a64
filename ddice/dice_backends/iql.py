"""Implicit Q-learning (IQL, arXiv 2110.06169): V(s) is an expectile of Q over the actions of the
data, and ratios are exp(advantage / temperature) with a cap.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Spec
from ddice.dice_backends.critic import CriticBackend, CriticConfig
from ddice.dice_backends.temperature import Temperature
from ddice.parts.part import weighted_mean


def expectile_loss(advantage: Tensor, expectile: float, weights: Tensor) -> Tensor:
    """Weighted mean of |expectile - 1(u < 0)| u^2 with u = advantage = Q - V.

    Stationary where V is the expectile of Q(s, .) over the actions of the data: their mean at 1/2,
    on the way to their maximum at 1. advantage and weights (*seeds, B).
    """
    # IQL (arXiv 2110.06169), equation 5. Q above V counts `expectile`, Q below V the rest.
    above = advantage.new_full((), expectile)
    share = above.where(advantage >= 0, 1 - above)
    return weighted_mean(share * advantage.square(), weights)


class Iql(CriticConfig):
    """Expectile V and regressed Q: with `SelectOnly` it is IDQL (arXiv 2304.10573), with
    `GaussianBC` the published policy.
    """

    kind: Literal["iql"] = "iql"
    # Published settings of locomotion (arXiv 2110.06169): expectile 0.7, inverse temperature 3,
    # exponentiated advantages clipped at 100. Its AntMaze has 0.9 and 10.
    expectile: float = Field(
        0.7, gt=0, lt=1, description="which expectile of Q over the actions of the data V is"
    )
    temperature: Temperature = Field(
        1 / 3,
        description=(
            "1 / beta of the ratio exp(beta (Q - V)), in reward units, or a target such as "
            '"ess:0.3"'
        ),
    )
    log_cap: float = Field(
        math.log(100), ge=0, description="largest log ratio; `cap_rate` says how often it acts"
    )

    def build(self, spec: Spec, seed: Seed = 0) -> IqlBackend:
        return IqlBackend(self, spec, seed)


class IqlBackend(CriticBackend):
    """The trainable pair: min over V of E[|expectile - 1(u < 0)| u^2], u = Q - V, and min over Q of
    E[(r + gamma V(s') - Q)^2].

    w = min(exp((Q - V) / temperature), cap) is proportional to a ratio of policies: its mean in a
    state is not 1. V does not depend on the temperature.
    """

    config: Iql
    remedy = "Lower the expectile or the learning rate"

    def value_loss(self, advantage: Tensor, values: Tensor, weights: Tensor) -> Tensor:
        """E[|expectile - 1(advantage < 0)| advantage^2]."""
        return expectile_loss(advantage, self.config.expectile, weights)

    def log_ratio_of(self, advantage: Tensor) -> Tensor:
        """min(advantage / temperature, log_cap)."""
        return self.scaled(advantage).clamp(max=self.config.log_cap)

    def diagnostics(self, advantage: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The share of ratios that the cap holds down."""
        capped = self.scaled(advantage) > self.config.log_cap
        return {"cap_rate": weighted_mean(capped.to(advantage.dtype), weights)}
