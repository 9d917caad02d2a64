"""Orthogonal-gradient DICE (ODICE, arXiv 2402.00348): V alone, with the backward gradient
projected off the forward one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec
from ddice.dice_backends.base import RatioKind
from ddice.dice_backends.value_only import AveragedValueBackend, AveragedValueConfig
from ddice.parts import loop
from ddice.parts.part import average, weighted_mean


class OrthogonalDice(AveragedValueConfig):
    """L = (1 - lam) V(s) + lam temperature f*((r + gamma V(s') - V(s)) / temperature), in which
    the gradient through V(s') is orthogonalised.
    """

    kind: Literal["orthogonal"] = "orthogonal"
    # Published settings: lam 0.6, eta 1 (arXiv 2402.00348).
    trade_off: float = Field(
        0.6, gt=0, lt=1, description="lam: weight of the conjugate against the linear term"
    )
    orthogonal_weight: float = Field(
        1.0,
        ge=0,
        description="eta: weight of the projected backward gradient; 0 is the semi-gradient",
    )

    def build(self, spec: Spec, seed: Seed = 0) -> OrthogonalDiceBackend:
        return OrthogonalDiceBackend(self, spec, seed)


def orthogonal_gradient(
    forward: Sequence[Tensor], backward: Sequence[Tensor], weight: float, seed_axes: int
) -> list[Tensor]:
    """forward + weight * (backward - its projection on forward), over all tensors together,
    separately for each seed (the leading axes).
    """

    def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        # All parameters form one vector per seed: (*seeds, ...) -> (*seeds).
        return torch.stack(
            [(x * y).flatten(seed_axes).sum(-1) for x, y in zip(a, b, strict=True)]
        ).sum(0)

    # ODICE (arXiv 2402.00348): g = g_f + eta (g_b - (<g_f, g_b> / <g_f, g_f>) g_f). What is left
    # of g_b cannot undo the forward step to first order. The tiny floor avoids 0 / 0 where the
    # forward gradient vanishes; the projection is then zero.
    share = inner(forward, backward) / inner(forward, forward).clamp(
        min=torch.finfo(forward[0].dtype).tiny
    )
    return [
        # share gets trailing axes of size 1, to broadcast against a parameter (*seeds, ...).
        f + weight * (b - share.reshape(*share.shape, *(1,) * (f.ndim - seed_axes)) * f)
        for f, b in zip(forward, backward, strict=True)
    ]


class OrthogonalDiceBackend(AveragedValueBackend):
    """The trainable V. Ratios (f*)'((r + gamma V(s') - V(s)) / temperature) are state-action
    ratios, unnormalised.

    In the true-gradient limit E[w (1 - gamma (1 - termination))] = (1 - lam) / lam; the metric
    `flow_balance` is their quotient.
    """

    config: OrthogonalDice
    ratio_kind: ClassVar[RatioKind] = "state-action"
    starts_from: ClassVar[Literal["initial", "data"]] = "data"  # the linear term is E_D[V(s)]
    values_are_returns = False

    @torch.no_grad()
    def log_ratio(self, batch: Batch) -> Tensor:
        advantage = self.bootstrap(batch, self.value(batch.next_observations)) - self.value(
            batch.observations
        )
        return self.config.divergence.log_ratio(self.scaled(advantage))

    def _gradients(
        self, batch: Batch, values: Tensor, next_values: Tensor
    ) -> dict[nn.Parameter, Tensor]:
        """Forward plus projected backward gradient of the conjugate term; an averaged copy
        stands at the other end of each.
        """
        # The averaged V_bar stands at the end through which no gradient flows (arXiv 2402.00348).
        with torch.no_grad():
            averaged = self.target(self.encoder(batch.observations)).squeeze(-1)
            averaged_next = self.target(self.encoder(batch.next_observations)).squeeze(-1)
        # Conjugate term: lam alpha E_D[f*((r + gamma (1 - d) V(s') - V(s)) / alpha)], twice, with
        # one end live each time. The paper has alpha = 1.
        scale = self.config.trade_off * self.temperature
        terms = []
        for advantage in (
            # Forward: the gradient through V(s) only.
            self.bootstrap(batch, averaged_next) - values,
            # Backward: the gradient through V(s') only.
            self.bootstrap(batch, next_values) - averaged,
        ):
            terms.append(
                scale
                * weighted_mean(
                    self.config.divergence.conjugate(self.scaled(advantage)), batch.weights
                )
            )
        parameters = list(self.value_network.parameters())
        forward, backward = (
            # Seeds share no parameters, so their sum has the gradient of each. The graph is kept,
            # because the linear term in `update` still needs V(s).
            torch.autograd.grad(term.sum(), parameters, retain_graph=True, materialize_grads=True)
            for term in terms
        )
        gradient = orthogonal_gradient(
            forward, backward, self.config.orthogonal_weight, len(self.seed_shape)
        )
        return dict(zip(parameters, gradient, strict=True))

    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """One joint step of V and the advantage head."""
        returns = self.warm_start_target(batch, step)
        if returns is not None:
            return self.warm_start(batch, returns, step=step)
        features = self.encoder(batch.observations)
        values = self.value_network(features).squeeze(-1)
        next_values = self.value_network(self.encoder(batch.next_observations)).squeeze(-1)
        gradients = self._gradients(batch, values, next_values)
        # (1 - lam) E_D[V(s)]. Its gradient is not projected; `descend` adds the two.
        linear = (1 - self.config.trade_off) * weighted_mean(values, batch.weights)
        # Detached: the head's regression must not move V.
        advantage = (self.bootstrap(batch, next_values) - values).detach()
        head_loss, metrics = self.head_loss(features, batch.actions, advantage, batch.weights)
        self.descend(linear + head_loss, step, gradients=gradients)
        average(self.target, self.value_network, self.config.polyak)
        y = self.scaled(advantage)
        # At the minimum a constant added to V changes nothing to first order, which gives
        #   1 - lam = lam E_D[w (1 - gamma (1 - d))].
        # The factor of w is 1 at a termination (d = 1), and else 1 - gamma.
        flow = self.config.divergence.ratio(y) * torch.where(
            batch.terminations, 1.0, 1 - self.discount
        )
        balance = (
            weighted_mean(flow, batch.weights) * self.config.trade_off / (1 - self.config.trade_off)
        )
        return (
            metrics
            | {"flow_balance": balance}
            | self.diagnostics(y, advantage, values.detach(), batch.weights)
        )
