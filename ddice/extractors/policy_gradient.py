"""Policy gradient: a deterministic actor climbs Q and clones the data, as in TD3+BC (arXiv
2106.06860) and ReBRAC (arXiv 2305.09836), on the critic of any backend that has one.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec
from ddice.dice_backends.q_function import QFunction
from ddice.dice_backends.reduction import AnyReduction, Minimum, Reduction
from ddice.diffusion.networks import MLP, AnyEncoder, FlattenEncoder
from ddice.diffusion.samplers import Actor, ActorSampler
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.extractors.base import Extractor, ExtractorConfig
from ddice.parts import loop
from ddice.parts.part import Optimizer, weighted_mean
from ddice.parts.ratio_source import RatioSource
from ddice.policies.engines import QCallable


def actor_loss(
    scores: Tensor,  # (*seeds, B), Q(s, pi(s))
    distances: Tensor,  # (*seeds, B), |pi(s) - a|^2
    weights: Tensor,  # (*seeds, B)
    bc_weight: float,
) -> Tensor:  # (*seeds)
    """-E[Q] / stop_gradient(E|Q|) + bc_weight E[|pi(s) - a|^2] (arXiv 2106.06860, equation 3,
    over lambda).
    """
    # Divided by its own size, so that the unit of rewards does not move the balance. No gradient
    # in the divisor: an actor could else gain by a smaller |Q|. The floor is for Q = 0 everywhere.
    scale = weighted_mean(scores.detach().abs(), weights)
    scale = scale.clamp(min=torch.finfo(scores.dtype).tiny)
    return bc_weight * weighted_mean(distances, weights) - weighted_mean(scores, weights) / scale


def scores_of(
    q: QCallable,
    reduction: Reduction,
    observations: Tensor,  # (*seeds, B, S)
    actions: Tensor,  # (*seeds, B, A)
) -> Tensor:  # (*seeds, B)
    """Q(s, a), its members reduced to one number, with a gradient in the actions and in nothing
    else: no parameter of Q collects any. Raises ValueError for a Q without one, or of another
    shape.
    """
    asked = actions.detach().requires_grad_()
    values = q(observations, asked)
    *seeds, rows, _ = actions.shape
    if values.ndim not in (len(seeds) + 1, len(seeds) + 2) or values.shape[-1] != rows:
        expected = ", ".join([*map(str, seeds), "M", str(rows)])
        raise ValueError(
            f"expected q(observations, actions) of shape ({expected}), got {tuple(values.shape)}"
        )
    # A callable of one's own may leave out the axis of a single member.
    scores = reduction.reduce(values.reshape(*seeds, -1, rows))
    gradient: Tensor | None = None
    if scores.requires_grad:
        (gradient,) = torch.autograd.grad(scores.sum(), asked, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "expected a Q with a gradient in the actions, got one without: compute it by torch, "
            "from the actions that it is given, and not under torch.no_grad()"
        )
    # Q(a') + <dQ/da, a - a'> at a' = a: the value of Q, and by the chain rule its gradient in the
    # actor (deterministic policy gradient, arXiv 1509.02971), without a path into Q itself.
    return scores.detach() + (gradient * (actions - asked.detach())).sum(-1)


class PolicyGradient(ExtractorConfig):
    """A deterministic actor pi(s) = tanh(network(s)) trained on

        -E[Q(s, pi(s))] / E|Q(s, pi(s))| + bc_weight E[|pi(s) - a|^2]

    over the states and actions of the data; the divisor is a constant in the gradient. It needs a
    backend with a Q, which it reads and never trains, and no prior.

    |.|^2 sums over the A dimensions of an action in [-1, 1]^A. So bc_weight is ReBRAC's beta of the
    actor (arXiv 2305.09836, whose Q is normalised too: 0.001 to 0.1 by task), and TD3+BC's alpha
    (arXiv 2106.06860, whose squared error is a mean over dimensions: 2.5) is 1 / (A bc_weight).
    E|Q| is not that of advantages: a constant added to Q counts, as it does in both papers.
    """

    kind: Literal["policy_gradient"] = "policy_gradient"
    bc_weight: float = Field(
        0.1, ge=0, description="weight of the squared distance to the actions of the data"
    )
    reduction: AnyReduction = Field(Minimum(), description="of the members of Q to one number")
    network: MLP = MLP()
    encoder: AnyEncoder = FlattenEncoder()
    optimizer: Optimizer = Optimizer(learning_rate=1e-3, decay="cosine")
    batch_size: int = Field(256, ge=1)

    needs_prior = False
    needs_ratio = False
    needs_q = True

    def check(self, prior: TrainedPrior | None, backend: RatioSource | None) -> None:
        super().check(prior, backend)
        if backend is not None and isinstance(backend.q, QFunction):
            self.reduction.check_members(backend.q.critic.members[-1])

    def build(
        self, spec: Spec, seed: Seed = 0, prior: TrainedPrior | None = None
    ) -> PolicyGradientExtractor:
        return PolicyGradientExtractor(self, spec, seed)


class PolicyGradientExtractor(Extractor):
    """The trainable actor."""

    config: PolicyGradient

    def __init__(self, config: PolicyGradient, spec: Spec, seed: Seed):
        super().__init__(config, config.optimizer, config.batch_size, spec, seed, None)
        self.model = Actor(network=config.network, encoder=config.encoder).build(spec, seed)

    def learn_from(self, batch: Batch, backend: RatioSource | None, *, step: int) -> loop.Metrics:
        """One step with the Q of a backend as it is now."""
        return self.update(batch, step=step, q=None if backend is None else backend.q)

    def update(
        self,
        batch: Batch,
        *,
        step: int,
        log_ratio: Tensor | None = None,
        q: QCallable | None = None,
    ) -> loop.Metrics:
        """One step on the actor's loss; ratios are not read."""
        if q is None:
            raise ValueError(
                "PolicyGradient learns from a Q: update(batch, q=backend.q, step=step), or "
                "learn_from(batch, backend, step=step)"
            )
        self.expect_step(step)
        actions = self.model.actions(batch.observations)
        scores = scores_of(q, self.config.reduction, batch.observations, actions)
        distances = (actions - batch.actions).square().sum(-1)
        loss = actor_loss(scores, distances, batch.weights, self.config.bc_weight)
        self.descend(loss, step)
        return {
            "loss": loss.detach(),
            "q": weighted_mean(scores.detach(), batch.weights),
            "q_scale": weighted_mean(scores.detach().abs(), batch.weights),
            "distance": weighted_mean(distances.detach(), batch.weights),
        }

    def sampler(self) -> ActorSampler:
        return self.model
