"""Backends that learn V alone, and Q only as V plus a regressed advantage e(s, a) = E[r + gamma
V(s')] - V(s).
"""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec, Transitions
from ddice.dice_backends.advantage import AdvantageHead, clipped_targets
from ddice.dice_backends.backup import AnyBackup, OneStep
from ddice.dice_backends.base import Polyak, RatioKind
from ddice.dice_backends.diagnostics import ratio_metrics
from ddice.dice_backends.divergences import Divergence, Piecewise
from ddice.dice_backends.q_function import QConfig, QFunction
from ddice.dice_backends.semi_gradient import value_loss
from ddice.dice_backends.warm_start import WarmStartBackend, WarmStartConfig
from ddice.parts import loop
from ddice.parts.part import average, weighted_mean


class ValueOnlyConfig(WarmStartConfig, abstract=True):
    """The fields of the backends that learn V alone."""

    divergence: Divergence = Field(
        Piecewise(), description='a name, such as "kl", or "module:function" of your own f'
    )
    advantage: AdvantageHead = Field(
        AdvantageHead(), description="the regression e(s, a) that makes Q = V + e"
    )


class AveragedValueConfig(ValueOnlyConfig, abstract=True):
    """The fields of those among them that bootstrap from an averaged copy of V."""

    polyak: Polyak = 0.005


class ValueOnlyBackend(WarmStartBackend):
    """V and the advantage head."""

    config: ValueOnlyConfig

    def __init__(self, config: ValueOnlyConfig, spec: Spec, seed: Seed):
        super().__init__(config, spec, seed)
        inputs = {"features": self.encoder.size, "actions": spec.actions.size}
        self.head = config.advantage.head(inputs, seed)

    @property
    def q(self) -> QFunction:
        settings = QConfig(
            critic=self.config.advantage.network,
            members=self.config.advantage.members,
            value=self.config.value,
            encoder=self.config.encoder,
        )
        return QFunction(settings, self.encoder, self.head, self.value_network)

    def predicted_advantage(self, features: Tensor, actions: Tensor) -> Tensor:
        """The head for each member, (*seeds, M, B)."""
        # (*seeds, 1, B, F) broadcasts over the members: -> (*seeds, M, B, 1).
        axis = len(self.seed_shape)
        advantages: Tensor = self.head(features.unsqueeze(axis), actions.unsqueeze(axis))
        return advantages.squeeze(-1)

    def head_loss(
        self, features: Tensor, actions: Tensor, advantage: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the head to clipped advantages (*seeds, B), summed over members; and
        its metrics.
        """
        # L_e = sum_m E_D[(e_m(s, a) - (r + gamma V(s') - V(s)))^2], whose minimum is the
        # expectation over s'. The target is detached: V must not bend to make e easy to learn.
        targets, clip_rate = clipped_targets(
            advantage.detach(), weights, self.config.advantage.clip_deviations
        )
        axis = len(self.seed_shape)
        errors = self.predicted_advantage(features, actions) - targets.unsqueeze(axis)
        loss = weighted_mean(errors.square(), weights.unsqueeze(axis)).sum(-1)
        return loss, {"selector_loss": loss.detach(), "advantage_clip_rate": clip_rate}

    def warm_start(self, batch: Batch, returns: Tensor, *, step: int) -> loop.Metrics:
        """One step of regressing V on returns-to-go."""
        # E_D[(V(s) - sum_k gamma^k r_k)^2], least where V is the value of the behaviour policy.
        loss = weighted_mean((self.value(batch.observations) - returns).square(), batch.weights)
        self.descend(loss, step)
        return {"warm_start_loss": loss.detach()}

    def diagnostics(
        self, y: Tensor, advantage: Tensor, values: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Metrics of ratios at y = advantage / temperature, after which the temperature adapts;
        all (*seeds, B) and detached.
        """
        metrics = ratio_metrics(self.config.divergence.log_ratio(y), weights)
        self.adapt_temperature(metrics["effective_sample_size"])
        return metrics | {
            "cut_rate": weighted_mean(self.config.divergence.past_cut(y).to(y.dtype), weights),
            "td_error": weighted_mean(advantage.abs(), weights),
            "value": weighted_mean(values, weights),
            **self.in_force,
        }


class AveragedValueBackend(ValueOnlyBackend):
    """V, its averaged copy, and the advantage head."""

    config: AveragedValueConfig

    def __init__(self, config: AveragedValueConfig, spec: Spec, seed: Seed):
        super().__init__(config, spec, seed)
        # V_bar, the bootstrap; without a Q in between, a live V would chase itself.
        self.target = copy.deepcopy(self.value_network).requires_grad_(False)

    def bootstrap_value(self, observations: Tensor) -> Tensor:
        """That of the averaged copy."""
        values: Tensor = self.target(self.encoder(observations))
        return values.squeeze(-1)

    def warm_start(self, batch: Batch, returns: Tensor, *, step: int) -> loop.Metrics:
        """One step of regressing V on returns-to-go; its averaged copy follows at once."""
        metrics = super().warm_start(batch, returns, step=step)
        # Rate 1: the first real step must not bootstrap from an untrained copy.
        average(self.target, self.value_network, 1.0)
        return metrics


class DeterministicDice(AveragedValueConfig):
    """Semi-gradient DICE on V alone, r + gamma V(s') in place of Q: right for deterministic
    dynamics only, where it learns far quicker.

    With `backup=LambdaReturns(...)` G stands for Q: the advantage G - V is the generalised one
    (arXiv 1506.02438), of what the episode went on to do.
    """

    kind: Literal["deterministic"] = "deterministic"
    backup: AnyBackup = Field(OneStep(), description="how far what stands for Q looks ahead")
    value_weight: float = Field(
        1.0, gt=0, description="coefficient of V, and the mean ratio of every state"
    )

    def build(self, spec: Spec, seed: Seed = 0) -> DeterministicDiceBackend:
        return DeterministicDiceBackend(self, spec, seed)


class DeterministicDiceBackend(AveragedValueBackend):
    """min over V of E[f*(y) + c V / temperature], y = (r + gamma V_target(s') - V(s)) /
    temperature, or with another `backup` in place of r + gamma V_target(s'). Action ratio.

    In stochastic dynamics y carries the noise of s', and the ratio prefers lucky transitions.
    """

    config: DeterministicDice
    ratio_kind: ClassVar[RatioKind] = "action"

    def __init__(self, config: DeterministicDice, spec: Spec, seed: Seed):
        super().__init__(config, spec, seed)
        # Another weight adds a constant to V at every bootstrap.
        self.values_are_returns = config.value_weight == 1
        self.backup = config.backup.build(spec, seed)

    def prepare(self, data: Transitions) -> None:
        """Read the whole dataset where a warm start or the backup needs it. `fit` calls it; a
        hand-written loop must.
        """
        super().prepare(data)
        self.backup.prepare(self, data)

    @torch.no_grad()
    def log_ratio(self, batch: Batch) -> Tensor:
        advantage = self.backup.latest(self, batch) - self.value(batch.observations)
        return self.config.divergence.log_ratio(self.scaled(advantage))

    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """One joint step of V and the advantage head."""
        returns = self.warm_start_target(batch, step)
        if returns is not None:
            return self.warm_start(batch, returns, step=step)
        features = self.encoder(batch.observations)
        values = self.value_network(features).squeeze(-1)
        # r + gamma (1 - d) V_bar(s') stands for Q(s, a). Semi-gradient: nothing flows through s',
        # which makes w the action ratio (arXiv 2504.13368, proposition 1). The advantage keeps its
        # gradient in V(s).
        advantage = self.backup.targets(self, batch, step) - values
        y = self.scaled(advantage)
        # E_D[f*(y) + c V(s) / alpha], the V loss of Diffusion-DICE (arXiv 2407.20109) with the
        # sampled target in place of Q. One sample is no expectation: noise in s' enters w as if the
        # action had been better or worse, and a convex ratio such as e^y then raises V.
        v_loss = value_loss(
            y,
            values,
            self.temperature,
            self.config.divergence,
            self.config.value_weight,
            batch.weights,
        )
        head_loss, metrics = self.head_loss(features, batch.actions, advantage, batch.weights)
        self.descend(v_loss + head_loss, step)
        average(self.target, self.value_network, self.config.polyak)
        expected = torch.full_like(v_loss.detach(), self.config.value_weight)
        diagnostics = self.diagnostics(
            y.detach(), advantage.detach(), values.detach(), batch.weights
        )
        return {"v_loss": v_loss.detach(), "mean_ratio_expected": expected} | metrics | diagnostics
