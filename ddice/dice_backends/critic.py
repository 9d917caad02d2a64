"""Backends with a critic: Q(s, a) of several members, their averaged copies, and V(s), which is
learned from what these say of the actions of the data.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor
from typing_extensions import Self

from ddice.core.config import from_kind
from ddice.core.randomness import Seed
from ddice.data import Batch, Spec, Transitions
from ddice.dice_backends.advantage import AdvantageHead
from ddice.dice_backends.backup import AnyBackup, OneStep
from ddice.dice_backends.base import Polyak, RatioKind
from ddice.dice_backends.diagnostics import ratio_metrics
from ddice.dice_backends.q_function import SCORES_ACTIONS, QConfig, QFunction
from ddice.dice_backends.reduction import AnyReduction, Minimum
from ddice.dice_backends.selector import AveragedCritic, CriticEnsemble
from ddice.dice_backends.warm_start import WarmStartBackend, WarmStartConfig
from ddice.diffusion.networks import MLP, Network
from ddice.parts import loop
from ddice.parts.part import average, weighted_mean

AnySelector = Annotated[
    Annotated[AveragedCritic | CriticEnsemble | AdvantageHead, Field(discriminator="kind")],
    BeforeValidator(from_kind),
]


class CriticConfig(WarmStartConfig, abstract=True):
    """The fields of a backend with a critic."""

    # Published value (arXiv 2407.20109 and 2110.06169).
    polyak: Polyak = 0.005
    critic: MLP = Field(SCORES_ACTIONS, description="network of Q(s, a)")
    critic_members: int = Field(2, ge=1, description="Q networks that are reduced to one Q")
    reduction: AnyReduction = Field(
        Minimum(), description="how they become the one Q that V and the ratio see"
    )
    selector: AnySelector = Field(AveragedCritic(), description="which Q ranks candidates")
    backup: AnyBackup = Field(OneStep(), description="how far the target of Q looks ahead")

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        self.reduction.check_members(self.critic_members)
        return self


class CriticBackend(WarmStartBackend):
    """The trainable Q and V: min over Q of E[(r + gamma V(s') - Q)^2], or to the targets of
    another `backup`. What V minimises, and which ratio follows from the advantage Q - V, is the
    algorithm's: one of your own gives `value_loss` and `log_ratio_of`, and may report more in
    `diagnostics`.

    Both see actions of the data only, so that w is an action ratio.
    """

    config: CriticConfig
    ratio_kind: ClassVar[RatioKind] = "action"

    def __init__(self, config: CriticConfig, spec: Spec, seed: Seed):
        super().__init__(config, spec, seed)
        inputs = {"features": self.encoder.size, "actions": spec.actions.size}
        self.critic = config.critic.build(
            inputs, 1, seed=seed, stream="critic", members=(config.critic_members,)
        )
        # The averaged copy Q_bar is the Q of the V loss and of the ratio. It moves by Polyak
        # averaging only and never receives a gradient.
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.head = config.selector.build(config.critic, inputs, seed)
        self.backup = config.backup.build(spec, seed)

    @abstractmethod
    def value_loss(
        self,
        advantage: Tensor,  # (*seeds, B), Q - V, differentiable in V alone
        values: Tensor,  # (*seeds, B), V
        weights: Tensor,  # (*seeds, B)
    ) -> Tensor:
        """What V minimises, a weighted mean, (*seeds)."""

    @abstractmethod
    def log_ratio_of(
        self,
        advantage: Tensor,  # (*seeds, B)
    ) -> Tensor:
        """log w, (*seeds, B)."""

    def diagnostics(
        self,
        advantage: Tensor,  # (*seeds, B), detached
        weights: Tensor,  # (*seeds, B)
    ) -> dict[str, Tensor]:
        """What else the algorithm reports of its ratios, (*seeds) each."""
        return {}

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

    def prepare(self, data: Transitions) -> None:
        """Read the whole dataset where a warm start or the backup needs it. `fit` calls it; a
        hand-written loop must.
        """
        super().prepare(data)
        self.backup.prepare(self, data)

    def _members(self, x: Tensor) -> Tensor:
        """Add the axis of the ensemble members behind that of the seeds."""
        return x.unsqueeze(len(self.seed_shape))

    @torch.no_grad()
    def reduced_q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Averaged Q, reduced over its members: the one that V and the ratio see, (*seeds, B)."""
        return self._reduced_q(self.encoder(observations), actions)

    @torch.no_grad()
    def _reduced_q(self, features: Tensor, actions: Tensor) -> Tensor:
        # A minimum or a lower bound over the members counters overestimation. Shapes: (*seeds, M,
        # B, 1) -> (*seeds, M, B) -> (*seeds, B).
        q = self.target(self._members(features), self._members(actions)).squeeze(-1)
        return self.config.reduction.reduce(q)

    def _advantage(self, features: Tensor, actions: Tensor, values: Tensor) -> Tensor:
        """Averaged Q, reduced over its members, less V, (*seeds, B)."""
        # A = Q_bar(s, a) - V(s). Q_bar is a constant here, so that A carries a gradient to V
        # alone: otherwise the V loss would push Q down.
        return self._reduced_q(features, actions) - values

    def _regression(
        self,
        network: Network,  # of members that score actions
        features: Tensor,  # (*seeds, B, F)
        batch: Batch,
        targets: Tensor,  # (*seeds, B)
    ) -> tuple[Tensor, Tensor]:
        """sum_m E_D[(network_m(s, a) - targets)^2], (*seeds), and its errors (*seeds, M, B),
        detached: one target for all members.
        """
        # A sum over members, not a mean, so that the gradient of each does not depend on their
        # number.
        q = network(self._members(features), self._members(batch.actions)).squeeze(-1)
        errors = q - self._members(targets)
        loss = weighted_mean(errors.square(), self._members(batch.weights)).sum(-1)
        return loss, errors.detach()

    @torch.no_grad()
    def log_ratio(self, batch: Batch) -> Tensor:
        features = self.encoder(batch.observations)
        values = self.value_network(features).squeeze(-1)
        return self.log_ratio_of(self._advantage(features, batch.actions, values))

    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """One joint step of V, Q and the selector; the target of Q uses the live V."""
        features = self.encoder(batch.observations)
        values = self.value_network(features).squeeze(-1)
        returns = self.warm_start_target(batch, step)
        # (*seeds, B), with a gradient to V and none to Q.
        advantage = self._advantage(features, batch.actions, values)
        if returns is None:
            # Such as r + gamma (1 - d) V(s'). Semi-gradient: the target of Q is a constant, which
            # is why w is the action ratio, not a state-action ratio (arXiv 2504.13368, proposition
            # 1). V has no averaged copy, as published: that of Q is enough to steady the bootstrap.
            targets = self.backup.targets(self, batch, step)
            v_loss = self.value_loss(advantage, values, batch.weights)
        else:
            # Warm start: V and Q regress the observed return-to-go. The loss of V does not act
            # yet, because ratios of an untrained Q would be noise.
            targets, v_loss = returns, weighted_mean((values - returns).square(), batch.weights)
        q_loss, errors = self._regression(self.critic, features, batch, targets)
        loss, metrics = v_loss + q_loss, {"v_loss": v_loss.detach(), "q_loss": q_loss.detach()}
        metrics["td_error"] = weighted_mean(errors.abs(), self._members(batch.weights)).mean(-1)
        if self.head is not None:
            # V enters the head's target as a constant: ranking must not bend V.
            head_targets, head_metrics = self.config.selector.targets(
                targets, values.detach(), batch.weights
            )
            head_loss, _ = self._regression(self.head, features, batch, head_targets)
            loss = loss + head_loss
            metrics |= head_metrics | {"selector_loss": head_loss.detach()}
        # V, the critic and the head share no parameters, so one step on the sum equals separate
        # steps. Only a trainable encoder would see all the losses.
        self.descend(loss, step)
        # Rate 1 in the warm start: the first real step must not begin with a stale copy.
        average(self.target, self.critic, 1.0 if returns is not None else self.config.polyak)
        metrics |= ratio_metrics(self.log_ratio_of(advantage.detach()), batch.weights)
        metrics |= self.diagnostics(advantage.detach(), batch.weights)
        # Before Q is trained the spread of the ratios says nothing about the temperature.
        if returns is None:
            self.adapt_temperature(metrics["effective_sample_size"])
        return metrics | {
            "value": weighted_mean(values.detach(), batch.weights),
            **self.in_force,
        }
