"""Semi-gradient DICE: a (Q, V) pair whose ratio w = (f*)'((Q - V) / temperature) is the action
ratio pi*(a | s) / pi_D(a | s).

Source: Diffusion-DICE, arXiv 2407.20109, equations for V and Q; f-DICE is the same pair with
another divergence.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Spec, Transitions
from ddice.dice_backends.calibration import Calibration
from ddice.dice_backends.critic import CriticBackend, CriticConfig
from ddice.dice_backends.divergences import Divergence, FDivergence, Piecewise, SoftChi2
from ddice.parts.part import weighted_mean

HALVINGS = 40  # of an interval of values: to the end of float32


def value_loss(
    y: Tensor,
    values: Tensor,
    temperature: Tensor,
    divergence: FDivergence,
    value_weight: float,
    weights: Tensor,
) -> Tensor:
    """Weighted mean of f*(y) + value_weight V / temperature, with y = (Q - V) / temperature
    differentiable in V.

    Stationary where E[(f*)'(y) | s] = value_weight: the mean ratio of every state. y, values,
    weights (*seeds, B); temperature (*seeds).
    """
    # Diffusion-DICE (arXiv 2407.20109), the V loss divided by the temperature alpha:
    #   L_V = E_D[f*(y) + c V(s) / alpha], y = (Q(s, a) - V(s)) / alpha.
    # Its gradient in V is (c - w) / alpha with w = (f*)'(y), so at the minimum E[w | s] = c.
    # The paper prints c = 1 - gamma; c = 1 makes w a ratio of two policies, which must average 1.
    return weighted_mean(
        divergence.conjugate(y) + value_weight * values / temperature[..., None], weights
    )


def balancing_values(
    q: Tensor,  # (..., K), of actions of the behaviour policy
    temperature: Tensor,  # ()
    divergence: FDivergence,
    mean: float,
) -> Tensor:
    """V (...) with sum_k (f*)'((q_k - V) / temperature) / K = mean: E[w | s] = mean, by bisection.

    The equation that the V loss leads to, with the expectation over actions in place of a network.
    """
    # All y = (q - V) / temperature have w above `mean` at the lower end and below it at the upper
    # one, for a convex f with f'(1) = 0.
    reach = temperature * (2 + 2 * mean + abs(math.log(mean)))
    low, high = q.amin(-1) - reach, q.amax(-1) + reach
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        ratio = torch.exp(divergence.log_ratio((q - middle[..., None]) / temperature))
        above = ratio.mean(-1) > mean
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


class PairConfig(CriticConfig, abstract=True):
    """The fields of a (Q, V) pair."""

    value_weight: float = Field(
        1.0, gt=0, description="coefficient of V, and the mean ratio of every state"
    )

    calibration: Calibration | None = Field(
        None, description="once it is trained, solve V anew on actions of the prior, in every state"
    )

    @property
    @abstractmethod
    def f(self) -> FDivergence:
        """The divergence."""


class PiecewiseF(PairConfig):
    """Diffusion-DICE's backend: f = x log x - x + 1 below 1 and (x - 1)^2 above, so ratios are
    positive and grow linearly.
    """

    kind: Literal["piecewise_f"] = "piecewise_f"

    @property
    def f(self) -> FDivergence:
        return Piecewise()

    def build(self, spec: Spec, seed: Seed = 0) -> PiecewiseFBackend:
        return PiecewiseFBackend(self, spec, seed)


class FDice(PairConfig):
    """The same pair with any divergence; soft chi^2 unless said, the default of OptiDICE too."""

    kind: Literal["f_dice"] = "f_dice"
    divergence: Divergence = Field(
        SoftChi2(), description='a name, such as "kl", or "module:function" of your own f'
    )

    @property
    def f(self) -> FDivergence:
        return self.divergence

    def build(self, spec: Spec, seed: Seed = 0) -> FDiceBackend:
        return FDiceBackend(self, spec, seed)


class PairBackend(CriticBackend):
    """The trainable (Q, V) pair: min over V of E[f*((Q - V) / temperature) + c V / temperature],
    min over Q of E[(r + gamma V(s') - Q)^2].
    """

    config: PairConfig

    def __init__(self, config: PairConfig, spec: Spec, seed: Seed):
        super().__init__(config, spec, seed)
        # With KL the V loss gives V = alpha log E[e^(Q / alpha)] - alpha log c. Each bootstrap
        # carries the constant on, and the sum over gamma^k divides it by 1 - gamma.
        self.values_are_returns = config.value_weight == 1
        if not self.values_are_returns:
            weight = config.value_weight
            shift = -math.log(weight) / (1 - self.discount)
            warnings.warn(
                f"value_weight {weight:.3g} forces a mean ratio of {weight:.3g} in every state and "
                "adds about -log(value_weight) / (1 - discount) temperatures to every value, here "
                f"{shift:.3g}: values are then no returns",
                stacklevel=4,
            )

    def identity(self, data: Transitions) -> str:
        """See `Part.identity`. What becomes of the ratios afterwards is no training."""
        return self.config.digest(
            without=("calibration",),
            part=type(self).__name__,
            seed=self.seed,
            data=data.spec.fingerprint,
        )

    def value_loss(self, advantage: Tensor, values: Tensor, weights: Tensor) -> Tensor:
        """E[f*(y) + c V / temperature] with y = advantage / temperature."""
        return value_loss(
            self.scaled(advantage),
            values,
            self.temperature,
            self.config.f,
            self.config.value_weight,
            weights,
        )

    def log_ratio_of(self, advantage: Tensor) -> Tensor:
        """log (f*)'(advantage / temperature)."""
        return self.config.f.log_ratio(self.scaled(advantage))

    def log_ratio_at(self, advantage: Tensor, temperature: Tensor) -> Tensor:
        """The same at another temperature, ()."""
        return self.config.f.log_ratio(advantage / temperature)

    def balancing_values(self, q: Tensor, temperature: Tensor) -> Tensor:
        """V (B,) with E[w | s] = value_weight over the actions of q (B, K); temperature ()."""
        return balancing_values(q, temperature, self.config.f, self.config.value_weight)

    def diagnostics(self, advantage: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The mean ratio to expect, and the share of y past the cut of the divergence."""
        past_cut = self.config.f.past_cut(self.scaled(advantage))
        cut_rate = weighted_mean(past_cut.to(advantage.dtype), weights)
        return {
            # E[w] = c at the minimum of the V loss, for free: a mean far from it means that V lags
            # behind Q.
            "mean_ratio_expected": torch.full_like(cut_rate, self.config.value_weight),
            "cut_rate": cut_rate,
        }


class PiecewiseFBackend(PairBackend):
    """The trainable pair of Diffusion-DICE."""

    config: PiecewiseF


class FDiceBackend(PairBackend):
    """The trainable pair with a divergence of choice."""

    config: FDice
