"""OptiDICE (arXiv 2106.10783): the true gradient of the dual, through s and s', with
terminations that lead to an absorbing state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from ddice.core.config import Config, from_kind
from ddice.core.randomness import Seed
from ddice.data import Batch, Spec
from ddice.dice_backends.base import RatioKind
from ddice.dice_backends.divergences import Divergence, FDivergence, SoftChi2
from ddice.dice_backends.q_function import QFunction
from ddice.dice_backends.rewards import AnyReward, Scale, Standardize
from ddice.dice_backends.value_only import ValueOnlyBackend, ValueOnlyConfig
from ddice.diffusion.networks import MLP
from ddice.parts import loop
from ddice.parts.part import weighted_mean


def dual_loss(
    advantage: Tensor,
    lam: Tensor,
    initial: Tensor,
    weights: Tensor,
    *,
    divergence: FDivergence,
    temperature: Tensor,
) -> Tensor:
    """initial + E[temperature f*((advantage - lam) / temperature)] + lam, per seed; convex in (V,
    lam), stationary in lam where E[w] = 1.

    `initial` is (1 - gamma) E_mu0[V], (*seeds); advantage and weights (*seeds, N).
    """
    y = (advantage - lam[..., None]) / temperature[..., None]
    return initial + temperature * weighted_mean(divergence.conjugate(y), weights) + lam


def envelope_loss(
    advantage: Tensor, ratio: Tensor, lam: Tensor, initial: Tensor, weights: Tensor
) -> Tensor:
    """initial + E[ratio (advantage - lam)] + lam with fixed ratios: the gradient of `dual_loss`
    when they are those of E[advantage | s, a].
    """
    return initial + weighted_mean(ratio * (advantage - lam[..., None]), weights) + lam


class Expectation(Config, abstract=True):
    """Which advantage e(s, a) the ratio w = (f*)'((e - lam) / temperature) sees, and the loss of V
    and lam that belongs to it.
    """

    kind: str

    @abstractmethod
    def expected(
        self,
        sampled: Tensor,  # (*seeds, 2 B), e of every transition, then of the absorbing loops
        predict: Callable[[], Tensor],  # -> (*seeds, M, B), the advantage head at the transitions
    ) -> Tensor:
        """The e that w sees, (*seeds, 2 B)."""

    @abstractmethod
    def loss(
        self,
        sampled: Tensor,  # (*seeds, 2 B), differentiable in V
        y: Tensor,  # (*seeds, 2 B), (expected e - lam) / temperature, detached
        lam: Tensor,  # (*seeds)
        initial: Tensor,  # (*seeds), (1 - gamma) E_mu0[V]
        weights: Tensor,  # (*seeds, 2 B)
        *,
        divergence: FDivergence,
        temperature: Tensor,  # (*seeds)
    ) -> Tensor:
        """The loss of V and lam, (*seeds)."""


class RegressedExpectation(Expectation):
    """w sees E[e | s, a], the advantage head's mean over members: right in stochastic dynamics.

    The loops of the absorbing state are not random: they need no head.
    """

    kind: Literal["network"] = "network"

    def expected(self, sampled: Tensor, predict: Callable[[], Tensor]) -> Tensor:
        rows = predict().mean(-2)
        loops = sampled[..., rows.shape[-1] :]
        return torch.cat([rows, loops], -1)

    def loss(
        self,
        sampled: Tensor,
        y: Tensor,
        lam: Tensor,
        initial: Tensor,
        weights: Tensor,
        *,
        divergence: FDivergence,
        temperature: Tensor,
    ) -> Tensor:
        return envelope_loss(sampled, divergence.ratio(y), lam, initial, weights)


class SampledExpectation(Expectation):
    """w sees the e of the one transition that was sampled: biased in stochastic dynamics, where E
    w((e - lam) / temperature) is not w at E e.
    """

    kind: Literal["sample"] = "sample"

    def expected(self, sampled: Tensor, predict: Callable[[], Tensor]) -> Tensor:
        return sampled

    def loss(
        self,
        sampled: Tensor,
        y: Tensor,
        lam: Tensor,
        initial: Tensor,
        weights: Tensor,
        *,
        divergence: FDivergence,
        temperature: Tensor,
    ) -> Tensor:
        return dual_loss(
            sampled, lam, initial, weights, divergence=divergence, temperature=temperature
        )


AnyExpectation = Annotated[
    Annotated[RegressedExpectation | SampledExpectation, Field(discriminator="kind")],
    BeforeValidator(from_kind),
]


class OptiDice(ValueOnlyConfig):
    """min over V and lam of (1 - gamma) E_mu0[V] + E_D[temperature f*((e - lam) / temperature)]
    + lam, with e = r + gamma V(s') - V(s).
    """

    kind: Literal["optidice"] = "optidice"
    divergence: Divergence = Field(
        SoftChi2(), description="soft_chi2, half_pearson and kl are the usual choices"
    )
    rewards: tuple[AnyReward, ...] = (Standardize(), Scale(factor=0.1))
    value: MLP = Field(MLP(), description="network of V(s)")
    expectation: AnyExpectation = Field(
        RegressedExpectation(), description="which advantage e the ratio w sees"
    )

    def build(self, spec: Spec, seed: Seed = 0) -> OptiDiceBackend:
        if not spec.has_initial:
            raise ValueError(
                "OptiDice needs initial observations: give whole episodes, or the array "
                "`initial_observations`"
            )
        return OptiDiceBackend(self, spec, seed)


class OptiDiceBackend(ValueOnlyBackend):
    """The trainable V, lam, value of the absorbing state, and e(s, a). Ratios are state-action
    ratios with mean 1 over the rows of the data and one self-loop of the absorbing state per
    termination.

    The absorbing state pays what a raw reward of 0 becomes under the reward transforms. V and lam
    alone are fixed up to (V + c, lam - (1 - gamma) c) only: `value` adds lam / (1 - gamma) and `q`
    gamma times that, so that q = E[r + gamma value(s')].
    """

    config: OptiDice
    ratio_kind: ClassVar[RatioKind] = "state-action"
    values_are_returns = False

    def __init__(self, config: OptiDice, spec: Spec, seed: Seed):
        super().__init__(config, spec, seed)
        self.lam = nn.Parameter(torch.zeros(self.seed_shape, dtype=torch.float32, device="cpu"))
        self.absorbing_value = nn.Parameter(
            torch.full(
                self.seed_shape,
                self.rewards.absorbing / (1 - config.discount),
                dtype=torch.float32,
                device="cpu",
            )
        )

    @property
    def _shift(self) -> Tensor:
        return self.lam.detach() / (1 - self.config.discount)

    @property
    def q(self) -> QFunction:
        q = super().q
        q.offset = self.config.discount * self._shift
        return q

    def value(self, observations: Tensor) -> Tensor:
        return super().value(observations) + self._shift[..., None]

    def _sampled(self, batch: Batch, values: Tensor, next_values: Tensor) -> Tensor:
        """e of every row, then of the self-loop of the absorbing state for every row, (*seeds, 2
        B); the loops count where rows terminate.
        """
        next_values = torch.where(batch.terminations, self.absorbing_value[..., None], next_values)
        rows = self.rewards(batch.rewards) + self.config.discount * next_values - values
        loop_advantage = self.rewards.absorbing - (1 - self.config.discount) * self.absorbing_value
        return torch.cat([rows, loop_advantage[..., None].expand_as(rows)], -1)

    def _expected(self, features: Tensor, actions: Tensor, sampled: Tensor) -> Tensor:
        """The e that the ratio sees, (*seeds, 2 B)."""
        return self.config.expectation.expected(
            sampled, lambda: self.predicted_advantage(features, actions)
        )

    @torch.no_grad()
    def log_ratio(self, batch: Batch) -> Tensor:
        features = self.encoder(batch.observations)
        values, next_values = (
            self.value_network(f).squeeze(-1)
            for f in (features, self.encoder(batch.next_observations))
        )
        advantage = self._expected(
            features, batch.actions, self._sampled(batch, values, next_values)
        )[..., : values.shape[-1]]
        return self.config.divergence.log_ratio(self.scaled(advantage - self.lam[..., None]))

    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """One joint step of V, lam, the absorbing state and e."""
        returns = self.warm_start_target(batch, step)
        if returns is not None:
            return self.warm_start(batch, returns, step=step)
        if batch.initial is None:
            raise ValueError(
                "OptiDice needs batch.initial, the initial observations that data.sample and "
                "data.full add"
            )
        features = self.encoder(batch.observations)
        values = self.value_network(features).squeeze(-1)
        next_values = self.value_network(self.encoder(batch.next_observations)).squeeze(-1)
        initial_values = self.value_network(self.encoder(batch.initial.observations)).squeeze(-1)
        initial = (1 - self.config.discount) * weighted_mean(initial_values, batch.initial.weights)
        sampled = self._sampled(batch, values, next_values)
        weights = torch.cat([batch.weights, batch.weights * batch.terminations], -1)
        expected = self._expected(features, batch.actions, sampled)
        y = self.scaled((expected - self.lam[..., None]).detach())
        v_loss = self.config.expectation.loss(
            sampled,
            y,
            self.lam,
            initial,
            weights,
            divergence=self.config.divergence,
            temperature=self.temperature,
        )
        head_loss, metrics = self.head_loss(
            features, batch.actions, sampled[..., : values.shape[-1]], batch.weights
        )
        self.descend(v_loss + head_loss, step)
        metrics |= {
            "v_loss": v_loss.detach(),
            "mean_ratio_expected": torch.ones_like(v_loss),
            "lam": self.lam.detach().clone(),
        }
        return metrics | self.diagnostics(
            y,
            expected.detach(),
            torch.cat([values, values], -1).detach() + self._shift[..., None],
            weights,
        )
