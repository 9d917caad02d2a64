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
    # OptiDICE (arXiv 2106.10783), with lam the multiplier of E[w] = 1:
    #   L(V, lam) = (1 - gamma) E_mu0[V] + E_D[alpha f*((e - lam) / alpha)] + lam.
    # dL/dlam = 1 - E_D[w]. The gradient flows through both V(s) and V(s') in e: this true gradient
    # is what makes w a state-action ratio. Shapes: y (*seeds, N), result (*seeds).
    y = (advantage - lam[..., None]) / temperature[..., None]
    return initial + temperature * weighted_mean(divergence.conjugate(y), weights) + lam


def envelope_loss(
    advantage: Tensor, ratio: Tensor, lam: Tensor, initial: Tensor, weights: Tensor
) -> Tensor:
    """initial + E[ratio (advantage - lam)] + lam with fixed ratios: the gradient of `dual_loss`
    when they are those of E[advantage | s, a].
    """
    # By the envelope theorem d/dV alpha f*((e - lam) / alpha) = w de/dV, with w held fixed. So w
    # can come from a network for E[e | s, a] while de/dV comes from the one sample, which is
    # unbiased. Only the gradient is that of the dual: the value lacks -alpha E[f(w)], so do not
    # compare it with `dual_loss`.
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
        # (*seeds, M, B) -> (*seeds, B): a mean, not a minimum, because w needs an unbiased e.
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
        # y is detached, so w is a constant: the head learns from its regression only, V from e.
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
        # `y` is not used: f* is applied to the live e, and autograd gives the factor w itself.
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
    # Published settings (arXiv 2106.10783): standardised rewards times 0.1.
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
        # V + c with lam - (1 - gamma) c gives the same loss for every c. Any start would do, and
        # zero begins with V as a return.
        self.lam = nn.Parameter(torch.zeros(self.seed_shape, dtype=torch.float32, device="cpu"))
        # V_abs starts at r_abs / (1 - gamma), the return of the endless self-loop, where its e is
        # zero.
        self.absorbing_value = nn.Parameter(
            torch.full(
                self.seed_shape,
                self.rewards.absorbing / (1 - self.discount),
                dtype=torch.float32,
                device="cpu",
            )
        )

    @property
    def _shift(self) -> Tensor:
        # V + lam / (1 - gamma) does not change under (V + c, lam - (1 - gamma) c). Detached: it
        # serves reports and Q, not the loss.
        return self.lam.detach() / (1 - self.discount)

    @property
    def q(self) -> QFunction:
        q = super().q
        # e + V = r + gamma V(s'), and the shift of V(s') counts gamma times.
        q.offset = self.discount * self._shift
        return q

    def value(self, observations: Tensor) -> Tensor:
        return super().value(observations) + self._shift[..., None]

    def _sampled(self, batch: Batch, values: Tensor, next_values: Tensor) -> Tensor:
        """e of every row, then of the self-loop of the absorbing state for every row, (*seeds, 2
        B); the loops count where rows terminate.
        """
        # e = r + gamma V(s') - V(s), and r + gamma V_abs - V(s) at a termination. The gradient
        # flows through both values. Simply cutting the bootstrap at terminations, as
        # `Backend.bootstrap` does, would let probability mass leave: E[w] = 1 could not hold and
        # the dual would have no lower bound.
        next_values = torch.where(batch.terminations, self.absorbing_value[..., None], next_values)
        rows = self.rewards(batch.rewards) + self.discount * next_values - values
        # The self-loop: e = r_abs + gamma V_abs - V_abs, (*seeds), the same for every row.
        loop_advantage = self.rewards.absorbing - (1 - self.discount) * self.absorbing_value
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
        # The data rows only: the loops have no action to learn from.
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
        # (1 - gamma) E_mu0[V], (*seeds).
        initial = (1 - self.discount) * weighted_mean(initial_values, batch.initial.weights)
        sampled = self._sampled(batch, values, next_values)
        # Row i has a self-loop only if it terminates, else its loop has weight 0. The loops count
        # in E[w] = 1, because the absorbing state holds part of the mass. Shape (*seeds, 2 B).
        weights = torch.cat([batch.weights, batch.weights * batch.terminations], -1)
        expected = self._expected(features, batch.actions, sampled)
        # Detached: it gives fixed ratios to the envelope loss, and diagnostics.
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
        # The head regresses e of the data rows, detached: no gradient to V from here.
        head_loss, metrics = self.head_loss(
            features, batch.actions, sampled[..., : values.shape[-1]], batch.weights
        )
        self.descend(v_loss + head_loss, step)
        metrics |= {
            "v_loss": v_loss.detach(),
            # lam enforces E[w] = 1, whatever the divergence.
            "mean_ratio_expected": torch.ones_like(v_loss),
            "lam": self.lam.detach().clone(),
        }
        return metrics | self.diagnostics(
            y,
            expected.detach(),
            # A loop repeats the value of the row that led to it; V_abs is not a state of the data.
            torch.cat([values, values], -1).detach() + self._shift[..., None],
            weights,
        )
