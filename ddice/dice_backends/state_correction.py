"""From an action ratio w(a | s) to a state-action ratio: the state factor that makes it a flow.

Semi-gradient pairs learn w(a | s) = pi(a | s) / pi_D(a | s). Off-policy evaluation needs d^pi(s, a)
/ d^D(s, a). Following the two stages of arXiv 2504.13368 - first the action ratio, then off-policy
evaluation of the policy it defines recovers the state-action ratio - this part learns eta(s) with
w(a | s) eta(s) = d^pi(s, a) / d^D(s, a).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import Self

from ddice.core.config import Config
from ddice.core.randomness import Seed
from ddice.data import Batch, Spec, Transitions
from ddice.dice_backends.diagnostics import ratio_metrics
from ddice.dice_backends.divergences import Divergence, SoftChi2
from ddice.diffusion.networks import MLP, AnyEncoder, FlattenEncoder
from ddice.parts import loop
from ddice.parts.part import Optimizer, Part, weighted_mean
from ddice.parts.ratio_source import FlowStart, QCallable, RatioKind, RatioSource


def correction_loss(advantage: Tensor, factor: Tensor, initial: Tensor, weights: Tensor) -> Tensor:
    """initial + E[eta(s) w (gamma (1 - d) U(s') - U(s))] with fixed factors eta, per seed: the
    gradient in U of the dual

        min over U of (1 - gamma) E_mu0[U] + E_{s ~ d^D}[f*(E[w (gamma (1 - d) U(s') - U(s)) | s])],
        eta = (f*)'(that expectation),

    whose primal is min over eta >= 0 of E_{s ~ d^D}[f(eta(s))] under the Bellman flow of w eta.
    `initial` is (1 - gamma) E_mu0[U], (*seeds); advantage = w (gamma (1 - d) U(s') - U(s)), factor
    and weights (*seeds, B).
    """
    # eta is held fixed: by the envelope theorem d/dU f*(E[A | s]) = eta dE[A | s]/dU, and the
    # sampled A is unbiased for its mean. The value is not that of the dual, only the gradient is.
    return initial + weighted_mean(factor * advantage, weights)


class StateCorrection(Config):
    """Learns eta(s) > 0 for the action ratios of a trained backend; the flow alone fixes it,
    whatever the divergence.

    Behind a termination nothing follows (U = 0, no mass is counted there): E_D[w eta] is then (1 -
    gamma) times the expected discounted number of steps, 1 without terminations. w need not have
    mean 1 per state: the policy is pi proportional to pi_D w, and eta absorbs the rest.
    """

    kind: Literal["state_correction"] = "state_correction"
    discount: float | None = Field(
        None, ge=0, lt=1, description="None: the discount of the backend"
    )
    divergence: Divergence = Field(
        SoftChi2(),
        description="shapes the way to the solution; it must keep eta positive: not (half_)pearson",
    )
    potential: MLP = Field(MLP(), description="network of U(s)")
    factor: MLP = Field(
        MLP(), description="network of (f')(eta(s)), regressed on the advantage of U"
    )
    encoder: AnyEncoder = FlattenEncoder()
    optimizer: Optimizer = Optimizer(learning_rate=1e-3)
    batch_size: int = Field(512, ge=1)

    def build(self, spec: Spec, seed: Seed = 0, *, backend: RatioSource) -> CorrectedRatio:
        """Raises ValueError without initial observations, and for a backend whose ratios are
        state-action ratios already.
        """
        if not spec.has_initial:
            raise ValueError(
                "StateCorrection needs initial observations: give whole episodes, or the array "
                "`initial_observations`"
            )
        if backend.ratio_kind != "action":
            raise ValueError(
                f"expected a backend with action ratios, got {backend.ratio_kind!r} ratios: "
                "these need no correction"
            )
        return CorrectedRatio(self, spec, seed, backend)

    def fit(
        self,
        data: Transitions,
        *,
        backend: RatioSource,
        steps: int | None = None,
        seed: Seed = 0,
        device: str | torch.device = "auto",
        progress: bool = True,
        on_step: loop.OnStep | None = None,
        checkpoint: str | Path | None = None,
    ) -> CorrectedRatio:
        """Build and train for `steps` steps; see `GoesOn.fit`. The backend
        is read, never trained.
        """
        part = self.build(data.spec, seed, backend=backend).to(loop.resolve_device(device))
        return part.fit(
            data, steps=steps, progress=progress, on_step=on_step, checkpoint=checkpoint
        )


class CorrectedRatio(Part):
    """U(s), the regression of its advantage, and the backend they correct; `log_ratio` = log w(a
    | s) + log eta(s).
    """

    config: StateCorrection
    backend: RatioSource
    # Momentum makes U and the factor chase each other: with Adam's usual betas tables were still 5
    # to 10 % off after 1000 steps, with these 0.2 %.
    betas = (0.5, 0.99)
    ratio_kind: ClassVar[RatioKind] = "state-action"
    starts_from: ClassVar[FlowStart] = "initial"

    def __init__(self, config: StateCorrection, spec: Spec, seed: Seed, backend: RatioSource):
        super().__init__(config, config.optimizer, config.batch_size, spec, seed)
        # Not a submodule: its parameters are neither trained nor saved here.
        object.__setattr__(self, "backend", backend)
        discount = backend.discount if config.discount is None else config.discount
        if discount is None:
            raise ValueError(
                "the backend has no discount of its own: give one, StateCorrection(discount=0.99)"
            )
        self.discount = float(discount)
        self.encoder = config.encoder.build(spec.normalizer.mean, spec.normalizer.std)
        self.potential = config.potential.build(
            {"features": self.encoder.size}, 1, seed=seed, stream="potential"
        )
        self.factor = config.factor.build(
            {"features": self.encoder.size}, 1, seed=seed, stream="factor"
        )

    @property
    def has_q(self) -> bool:
        return self.backend.has_q

    @property
    def has_value(self) -> bool:
        return self.backend.has_value

    @property
    def temperature(self) -> Tensor | None:
        """The backend's."""
        return self.backend.temperature

    @property
    def rewards(self) -> Callable[[Tensor], Tensor]:
        """The backend's transforms: values and Q are in its units."""
        return self.backend.rewards

    @property
    def q(self) -> QCallable | None:
        """The backend's."""
        return self.backend.q

    def value(self, observations: Tensor) -> Tensor:
        """The backend's V(s), (*seeds, B)."""
        return self.backend.value(observations)

    def rebuild(self, index: int, seed: int) -> Self:
        return type(self)(self.config, self.spec, seed, self.backend.select(index))

    def identity(self, data: Transitions) -> str:
        """See `Part.identity`; the backend is read."""
        return f"{super().identity(data)}+{self.backend.identity(data)}@{self.backend.step}"

    @torch.no_grad()
    def log_factor(self, observations: Tensor) -> Tensor:
        """log eta(s), (*seeds, B)."""
        return self.config.divergence.log_ratio(self.factor(self.encoder(observations)).squeeze(-1))

    @torch.no_grad()
    def log_ratio(self, batch: Batch) -> Tensor:
        """log of d^pi(s, a) / d^D(s, a), (*seeds, B); -inf where the action ratio is 0."""
        return self.backend.log_ratio(batch) + self.log_factor(batch.observations)

    def ratio(self, batch: Batch) -> Tensor:
        """exp(log_ratio), (*seeds, B)."""
        return torch.exp(self.log_ratio(batch))

    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """One joint step of U and the factor. Raises ValueError without initial observations."""
        if batch.initial is None:
            raise ValueError(
                "StateCorrection needs batch.initial, the initial observations that "
                "data.sample and data.full add"
            )
        features, following, first = (
            self.encoder(x)
            for x in (batch.observations, batch.next_observations, batch.initial.observations)
        )
        potential, next_potential, initial_potential = (
            self.potential(x).squeeze(-1) for x in (features, following, first)
        )
        # w(a | s) is given and stays fixed.
        action_log_ratio = self.backend.log_ratio(batch).detach()
        # A = w (gamma (1 - d) U(s') - U(s)), (*seeds, B). The true gradient flows through both
        # U(s) and U(s'): this is what carries mass along the flow.
        stays = self.discount * torch.where(batch.terminations, 0.0, next_potential)
        advantage = torch.exp(action_log_ratio) * (stays - potential)
        # y(s) regresses E[A | s], and eta = (f*)'(y). Applying (f*)' to one sample of A instead
        # would be biased, as (f*)' is not linear.
        y = self.factor(features).squeeze(-1)
        # Detached: U sees eta as a constant, and the factor learns from its regression only.
        log_eta = self.config.divergence.log_ratio(y.detach())
        # (1 - gamma) E_mu0[U], (*seeds): where the flow enters.
        initial = (1 - self.discount) * weighted_mean(initial_potential, batch.initial.weights)
        loss = correction_loss(advantage, torch.exp(log_eta), initial, batch.weights)
        # E_D[(y(s) - A)^2] with A detached, so that U is not bent towards what the factor
        # predicts.
        factor_loss = weighted_mean((y - advantage.detach()).square(), batch.weights)
        self.descend(loss + factor_loss, step)
        metrics = ratio_metrics(action_log_ratio + log_eta, batch.weights)
        # Mass in equals mass out when E[w eta (1 - gamma (1 - d))] = 1 - gamma: sum the Bellman
        # flow over all states.
        counted = torch.exp(action_log_ratio + log_eta) * torch.where(
            batch.terminations, 1.0, 1 - self.discount
        )
        return metrics | {
            "correction_loss": loss.detach(),
            "factor_loss": factor_loss.detach(),
            # 1 when mass is conserved.
            "flow_balance": weighted_mean(counted, batch.weights) / (1 - self.discount),
        }


if TYPE_CHECKING:  # read by mypy: corrected ratios are a source of ratios

    def _as_a_source(corrected: CorrectedRatio) -> RatioSource:
        return corrected
