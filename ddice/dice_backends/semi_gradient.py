"""Semi-gradient DICE: a (Q, V) pair whose ratio w = (f*)'((Q - V) / temperature) is the action
ratio pi*(a | s) / pi_D(a | s).

Source: Diffusion-DICE, arXiv 2407.20109, equations for V and Q; f-DICE is the same pair with
another divergence.
"""

from __future__ import annotations

import copy
import math
import warnings
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor
from typing_extensions import Self

from ddice.core.config import from_kind
from ddice.core.randomness import Seed
from ddice.data import Batch, Spec
from ddice.dice_backends.advantage import AdvantageHead
from ddice.dice_backends.base import Polyak, RatioKind
from ddice.dice_backends.diagnostics import ratio_metrics
from ddice.dice_backends.divergences import Divergence, FDivergence, Piecewise, SoftChi2
from ddice.dice_backends.q_function import SCORES_ACTIONS, QConfig, QFunction
from ddice.dice_backends.reduction import AnyReduction, Minimum
from ddice.dice_backends.selector import AveragedCritic, CriticEnsemble
from ddice.dice_backends.warm_start import WarmStartBackend, WarmStartConfig
from ddice.diffusion.networks import MLP
from ddice.parts import loop
from ddice.parts.part import average, weighted_mean


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


AnySelector = Annotated[
    Annotated[AveragedCritic | CriticEnsemble | AdvantageHead, Field(discriminator="kind")],
    BeforeValidator(from_kind),
]


class PairConfig(WarmStartConfig, abstract=True):
    """The fields of a (Q, V) pair."""

    # Published value (arXiv 2407.20109).
    polyak: Polyak = 0.005
    value_weight: float = Field(
        1.0, gt=0, description="coefficient of V, and the mean ratio of every state"
    )
    critic: MLP = Field(SCORES_ACTIONS, description="network of Q(s, a)")
    critic_members: int = Field(2, ge=1, description="Q networks that are reduced to one Q")
    reduction: AnyReduction = Field(
        Minimum(), description="how they become the one Q that V and the ratio see"
    )
    selector: AnySelector = Field(AveragedCritic(), description="which Q ranks candidates")

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        self.reduction.check_members(self.critic_members)
        return self

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


class PairBackend(WarmStartBackend):
    """The trainable (Q, V) pair: min over V of E[f*((Q - V) / temperature) + c V / temperature],
    min over Q of E[(r + gamma V(s') - Q)^2].
    """

    config: PairConfig
    ratio_kind: ClassVar[RatioKind] = "action"

    def __init__(self, config: PairConfig, spec: Spec, seed: Seed):
        super().__init__(config, spec, seed)
        # With KL the V loss gives V = alpha log E[e^(Q / alpha)] - alpha log c. Each bootstrap
        # carries the constant on, and the sum over gamma^k divides it by 1 - gamma.
        self.values_are_returns = config.value_weight == 1
        if not self.values_are_returns:
            weight = config.value_weight
            shift = -math.log(weight) / (1 - config.discount)
            warnings.warn(
                f"value_weight {weight:.3g} forces a mean ratio of {weight:.3g} in every state and "
                "adds about -log(value_weight) / (1 - discount) temperatures to every value, here "
                f"{shift:.3g}: values are then no returns",
                stacklevel=4,
            )
        inputs = {"features": self.encoder.size, "actions": spec.actions.size}
        self.critic = config.critic.build(
            inputs, 1, seed=seed, stream="critic", members=(config.critic_members,)
        )
        # The averaged copy Q_bar is the Q of the V loss and of the ratio. It moves by Polyak
        # averaging only and never receives a gradient.
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.head = config.selector.build(config.critic, inputs, seed)

    @property
    def q(self) -> QFunction:
        config, selector = self.config, self.config.selector
        # Without a head of its own the selector ranks with Q_bar, the same copy that the ratio
        # sees.
        network = self.head or self.target
        settings = QConfig(
            critic=selector.network_of(config.critic),
            members=network.members[-1],
            value=config.value if selector.adds_value else None,
            encoder=config.encoder,
        )
        value = self.value_network if selector.adds_value else None
        return QFunction(settings, self.encoder, network, value)

    def _members(self, x: Tensor) -> Tensor:
        """Add the axis of the ensemble members behind that of the seeds."""
        return x.unsqueeze(len(self.seed_shape))

    def _scaled_advantage(self, features: Tensor, actions: Tensor, values: Tensor) -> Tensor:
        """(averaged Q, reduced over its members, - V) / temperature, (*seeds, B)."""
        # y = (Q_bar(s, a) - V(s)) / alpha, where a minimum or a lower bound over the members
        # counters overestimation. Q_bar is a constant here, so that y carries a gradient to V
        # alone: otherwise the V loss would push Q down. Shapes: (*seeds, M, B, 1) ->
        # (*seeds, M, B) -> (*seeds, B).
        with torch.no_grad():
            q = self.target(self._members(features), self._members(actions)).squeeze(-1)
        return self.scaled(self.config.reduction.reduce(q) - values)

    @torch.no_grad()
    def log_ratio(self, batch: Batch) -> Tensor:
        features = self.encoder(batch.observations)
        return self.config.f.log_ratio(
            self._scaled_advantage(
                features, batch.actions, self.value_network(features).squeeze(-1)
            )
        )

    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """One joint step of V, Q and the selector; the target of Q uses the live V."""
        features = self.encoder(batch.observations)
        values = self.value_network(features).squeeze(-1)
        # r + gamma (1 - d) V(s'), the target of Q. Semi-gradient: the target is a constant, which
        # is why w is the action ratio, not a state-action ratio (arXiv 2504.13368, proposition 1).
        # V has no averaged copy, as published: the one of Q is enough to steady the bootstrap.
        with torch.no_grad():
            next_values = self.value_network(self.encoder(batch.next_observations)).squeeze(-1)
            targets = self.bootstrap(batch, next_values)
        returns = self.warm_start_target(batch, step)
        # (*seeds, B), with a gradient to V and none to Q.
        y = self._scaled_advantage(features, batch.actions, values)
        if returns is None:
            v_loss = value_loss(
                y,
                values,
                self.temperature,
                self.config.f,
                self.config.value_weight,
                batch.weights,
            )
        else:
            # Warm start: V and Q regress the observed return-to-go. No f* acts yet, because ratios
            # of an untrained Q would be noise.
            targets, v_loss = returns, weighted_mean((values - returns).square(), batch.weights)
        inputs = self._members(features), self._members(batch.actions)
        # L_Q = sum_m E_D[(Q_m(s, a) - (r + gamma (1 - d) V(s')))^2], one target for all members.
        # Shapes: errors (*seeds, M, B), q_loss (*seeds). A sum over members, not a mean, so that
        # the gradient of each does not depend on their number.
        errors = self.critic(*inputs).squeeze(-1) - self._members(targets)
        q_loss = weighted_mean(errors.square(), self._members(batch.weights)).sum(-1)
        loss, metrics = v_loss + q_loss, {"v_loss": v_loss.detach(), "q_loss": q_loss.detach()}
        if self.head is not None:
            # V enters the head's target as a constant: ranking must not bend V.
            head_targets, head_metrics = self.config.selector.targets(
                targets, values.detach(), batch.weights
            )
            metrics |= head_metrics
            head_errors = self.head(*inputs).squeeze(-1) - self._members(head_targets)
            head_loss = weighted_mean(head_errors.square(), self._members(batch.weights)).sum(-1)
            loss, metrics["selector_loss"] = loss + head_loss, head_loss.detach()
        # V, the critic and the head share no parameters, so one step on the sum equals separate
        # steps. Only a trainable encoder would see all the losses.
        self.descend(loss, step)
        # Rate 1 in the warm start: the first real step must not begin with a stale copy.
        average(self.target, self.critic, 1.0 if returns is not None else self.config.polyak)
        return metrics | self._diagnostics(
            y.detach(), values.detach(), errors.detach(), batch, adapt=returns is None
        )

    def _diagnostics(
        self, y: Tensor, values: Tensor, errors: Tensor, batch: Batch, *, adapt: bool
    ) -> dict[str, Tensor]:
        metrics = ratio_metrics(self.config.f.log_ratio(y), batch.weights)
        # Before Q is trained the spread of the ratios says nothing about the temperature.
        if adapt:
            self.adapt_temperature(metrics["effective_sample_size"])
        return metrics | {
            # E[w] = c at the minimum of the V loss, for free: a mean far from it means that V lags
            # behind Q.
            "mean_ratio_expected": torch.full_like(metrics["mean_ratio"], self.config.value_weight),
            "cut_rate": weighted_mean(self.config.f.past_cut(y).to(y.dtype), batch.weights),
            "td_error": weighted_mean(errors.abs(), self._members(batch.weights)).mean(-1),
            "value": weighted_mean(values, batch.weights),
            "temperature": self.temperature.detach().clone(),
        }


class PiecewiseFBackend(PairBackend):
    """The trainable pair of Diffusion-DICE."""

    config: PiecewiseF


class FDiceBackend(PairBackend):
    """The trainable pair with a divergence of choice."""

    config: FDice
