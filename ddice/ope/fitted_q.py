"""Fitted Q evaluation (arXiv 1903.08738): the value of a policy as it acts, with its own actions
sampled once and kept.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ddice.core.config import Config
from ddice.core.randomness import Seed, rand, randn
from ddice.core.statistics import check_level
from ddice.data import Batch, Spec, Transitions
from ddice.diffusion.networks import MLP, AnyEncoder, FlattenEncoder, Network
from ddice.ope.intervals import Estimate, bootstrap, interval
from ddice.parts import loop
from ddice.parts.part import Optimizer, Part, average, weighted_mean
from ddice.policies.policy import Policy

EXTRACTED = "the extracted policy"
Acting = Policy | Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class ActionCache:
    """J actions of a policy at the next state of every row and at every first state; weights sum
    to 1 over J (1 / J when sampled).
    """

    next_actions: Tensor  # (N, J, A) in [-1, 1]
    next_weights: Tensor  # (N, J)
    initial_actions: Tensor  # (E, J, A)
    initial_weights: Tensor  # (E, J)

    def to(self, device: torch.device | str) -> ActionCache:
        """The same on another device."""
        fields = (self.next_actions, self.next_weights, self.initial_actions, self.initial_weights)
        return ActionCache(*(x.to(device) for x in fields))


@torch.no_grad()
def sample_actions(
    policy: Acting, data: Transitions, *, samples: int = 8, seed: int = 0, batch_size: int = 4096
) -> ActionCache:
    """`samples` actions of `policy` at all next and all first observations of `data`.

    `policy` is a `ddice.Policy`, which samples and selects among its candidates as it does when it
    acts (stochastically), or a callable (observations (B, S), seed) -> actions (B, A) in [-1, 1].
    Raises ValueError without initial observations or for actions of another shape.
    """
    if data.initial_observations is None:
        raise ValueError(
            "fitted Q evaluation needs initial observations: give whole episodes, or the array "
            "`initial_observations`"
        )
    if samples < 1:
        raise ValueError(f"expected at least 1 sample per state, got {samples}")
    size = data.spec.actions.size

    def sampled(observations: Tensor, name: str) -> Tensor:
        each = [
            _act(policy, observations, f"ope/{name}/{j}", seed, batch_size, size)
            for j in range(samples)
        ]
        return torch.stack(each, 1)

    following = sampled(data.next_observations, "next")
    first = sampled(data.initial_observations, "initial")
    return ActionCache(
        next_actions=following,
        next_weights=following.new_full(following.shape[:2], 1 / samples),
        initial_actions=first,
        initial_weights=first.new_full(first.shape[:2], 1 / samples),
    )


def _act(
    policy: Acting,
    observations: Tensor,  # (N, S)
    stream: str,
    seed: int,
    batch_size: int,
    size: int,
) -> Tensor:
    """Actions (N, A) in [-1, 1], one per observation, with the random numbers of a stream."""
    chunks = []
    for i, chunk in enumerate(torch.split(observations, batch_size)):
        if isinstance(policy, Policy):
            shape = (len(chunk), policy.config.candidates, size)
            noise = randn(seed, f"{stream}/noise", i, shape).to(policy.device)
            uniform = rand(seed, f"{stream}/choice", i, (len(chunk),)).to(policy.device)
            # rows that terminate may hold anything as their next observation
            readable = torch.nan_to_num(chunk).to(policy.device)
            chosen = policy.decide(readable, noise, uniform).actions
        else:
            # Here and above the chunk counts as the step: another `batch_size` draws other numbers.
            own_seed = int(rand(seed, stream, i, (1,)).item() * 2**31)
            chosen = torch.as_tensor(
                policy(chunk, own_seed), dtype=torch.float32, device=observations.device
            )
        if tuple(chosen.shape) != (len(chunk), size):
            raise ValueError(
                f"expected the policy to return actions of shape ({len(chunk)}, {size}), got "
                f"{tuple(chosen.shape)}"
            )
        chunks.append(chosen.to(observations.device))
    return torch.cat(chunks)


class FittedQEvaluation(Config):
    """Members regress Q(s, a) on r + gamma (1 - d) mean_j Q_target(s', a_j), a_j ~ policy: no
    maximum, no ratio, only the policy's own actions.

    Fit it on held-out episodes, which neither backend nor extractor has seen. It can be wrong where
    the policy's actions lie outside the data: there Q extrapolates, and members that disagree
    (`spread`) are the only sign of it.
    """

    kind: Literal["fitted_q"] = "fitted_q"
    discount: float = Field(0.99, ge=0, lt=1)
    critic: MLP = Field(MLP(layer_norm=True), description="network of Q(s, a)")
    members: int = Field(3, ge=1, description="Q networks, each with a target of its own")
    samples: int = Field(8, ge=1, description="J, actions kept per next state")
    encoder: AnyEncoder = FlattenEncoder()
    optimizer: Optimizer = Optimizer(learning_rate=1e-3, decay="cosine")
    batch_size: int = Field(512, ge=1)
    polyak: float = Field(0.005, gt=0, le=1, description="rate of the target networks")

    def build(self, spec: Spec, seed: Seed = 0) -> FittedQ:
        return FittedQ(self, spec, seed)

    def fit(
        self,
        data: Transitions,
        *,
        policy: Acting | ActionCache,
        steps: int | None = None,
        seed: Seed = 0,
        device: str | torch.device = "auto",
        progress: bool = True,
        on_step: loop.OnStep | None = None,
        checkpoint: str | Path | None = None,
    ) -> FittedQ:
        """Sample the policy's actions once, then train for `steps` steps; see `GoesOn.fit`.
        `.estimate(data)` is the result.
        """
        part = self.build(data.spec, seed).to(loop.resolve_device(device))
        part.follow(policy, data)
        return part.fit(
            data, steps=steps, progress=progress, on_step=on_step, checkpoint=checkpoint
        )


class FittedQ(Part):
    """The members and their targets. Q is kept in units of the rewards' size; everything
    reported is in raw reward units.
    """

    config: FittedQEvaluation

    def __init__(self, config: FittedQEvaluation, spec: Spec, seed: Seed):
        super().__init__(config, config.optimizer, config.batch_size, spec, seed)
        self.encoder = config.encoder.build(spec.normalizer.mean, spec.normalizer.std)
        inputs = {"features": self.encoder.size, "actions": spec.actions.size}
        self.critic = config.critic.build(
            inputs, 1, seed=seed, stream="fitted_q", members=(config.members,)
        )
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        # Rewards of the size of 1 suit one learning rate; 1 where all rewards are 0.
        self.unit = max(abs(spec.rewards.mean), spec.rewards.std) or 1.0
        self._cache: ActionCache | None = None
        self._place = torch.zeros(0, dtype=torch.int64, device="cpu")

    def follow(self, policy: Acting | ActionCache, data: Transitions) -> None:
        """Take the actions that are to be evaluated; a hand-written loop calls it before
        `update`. Raises ValueError for a cache of other data.
        """
        # All seeds evaluate the same actions: they differ in their training, not in the question.
        seed = self.seed if isinstance(self.seed, int) else self.seed[0]
        cache = (
            policy
            if isinstance(policy, ActionCache)
            else sample_actions(policy, data, samples=self.config.samples, seed=seed)
        )
        if len(cache.next_actions) != len(data):
            raise ValueError(
                f"expected actions at the next states of all {len(data)} rows, got "
                f"{len(cache.next_actions)}: they belong to other data"
            )
        self._cache = cache.to(self.device)
        # (source rows,): where the actions of a row are kept, -1 for a row of other data.
        place = torch.full((data.spec.source_rows,), -1, dtype=torch.int64, device=self.device)
        place[data.rows.to(self.device)] = torch.arange(len(data), device=self.device)
        self._place = place

    def identity(self, data: Transitions) -> str:
        assert self._cache is not None
        # The first actions are left out: training does not read them.
        digest = hashlib.blake2b(digest_size=8)
        for read in (self._cache.next_actions, self._cache.next_weights):
            digest.update(read.cpu().numpy().tobytes())
        return super().identity(data) + digest.hexdigest()

    def _mean(
        self, network: Network, observations: Tensor, actions: Tensor, weights: Tensor
    ) -> Tensor:
        """sum_j weight_j Q(s, a_j) per member: observations (*seeds, B, S), actions (*seeds, B,
        J, A), weights (*seeds, B, J) -> (*seeds, M, B).
        """
        axis = len(self.seed_shape)
        features = self.encoder(observations).unsqueeze(-2).unsqueeze(axis)
        q: Tensor = network(features, actions.unsqueeze(axis)).squeeze(-1)
        return (q * weights.unsqueeze(axis)).sum(-1)

    def _each(self, network: Network, observations: Tensor, actions: Tensor) -> Tensor:
        """Q(s, a) per member, (*seeds, M, B): observations (*seeds, B, S), actions (*seeds, B,
        A).
        """
        axis = len(self.seed_shape)
        features = self.encoder(observations).unsqueeze(axis)
        q: Tensor = network(features, actions.unsqueeze(axis)).squeeze(-1)
        return q

    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """One step of every member, on rows of the data that `follow` was given. Raises ValueError
        before `follow`.
        """
        if self._cache is None:
            raise ValueError("whose value? Call part.follow(policy, data) before part.update(...)")
        place = self._place[batch.rows]
        axis = len(self.seed_shape)
        with torch.no_grad():
            following = self._mean(
                self.target,
                batch.next_observations,
                self._cache.next_actions[place],
                self._cache.next_weights[place],
            )
            # Chosen, not multiplied by 0: a terminated row may hold NaN. A truncated one keeps its
            # bootstrap.
            following = torch.where(batch.terminations.unsqueeze(axis), 0.0, following)
            rewards = (batch.rewards / self.unit).unsqueeze(axis)
            # (*seeds, M, B): each member follows its own target. A minimum over members would bias
            # an estimate.
            targets = rewards + self.config.discount * following
        q = self._each(self.critic, batch.observations, batch.actions)
        weights = batch.weights.unsqueeze(axis)
        loss = weighted_mean((q - targets).square(), weights).sum(-1)
        self.descend(loss, step)
        average(self.target, self.critic, self.config.polyak)
        with torch.no_grad():
            error = weighted_mean((q - targets).abs(), weights).mean(-1) * self.unit
            mean = weighted_mean(q, weights).mean(-1) * self.unit
        return {"loss": loss.detach(), "td_error": error, "value": mean}

    @torch.no_grad()
    def q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q^pi of the averaged members, (*seeds, M, B), in raw reward units."""
        return self._each(self.target, observations, actions) * self.unit

    @torch.no_grad()
    def initial_values(self, data: Transitions) -> Tensor:
        """V^pi of each member at each first observation, (M, E), in raw reward units."""
        if self.seed_shape:
            raise ValueError(
                "several seeds were trained together: evaluate each with select(i), then "
                "follow(policy, data)"
            )
        if (
            self._cache is None
            or data.initial_observations is None
            or len(data.initial_observations) != len(self._cache.initial_actions)
        ):
            raise ValueError(
                "expected the data whose actions are kept: call part.follow(policy, data) with "
                "these data first"
            )
        first = data.initial_observations.to(self.device)
        return (
            self._mean(self.target, first, self._cache.initial_actions, self._cache.initial_weights)
            * self.unit
        )

    def estimate(
        self, data: Transitions, *, level: float = 0.95, repetitions: int = 1000, seed: int = 0
    ) -> Estimate:
        """The discounted return from the first observations of `data`, with an interval over
        episodes; the ensemble's error is in `spread`.
        """
        check_level(level, repetitions)
        values = self.initial_values(data).mean(0).double().cpu().numpy()
        assert data.initial_weights is not None
        weights = data.initial_weights.double().cpu().numpy()
        # (E, 2): weight and weighted value are drawn together, and the statistic is their ratio.
        table = np.stack([weights, weights * values], 1)

        def mean(unit: np.ndarray, start: np.ndarray) -> float:
            return float(start[1] / start[0])

        low, high = interval(bootstrap(table, table, True, mean, repetitions, seed), level)
        return Estimate(mean(table.sum(0), table.sum(0)), low, high, "fitted Q", EXTRACTED)

    def spread(self, data: Transitions) -> float:
        """The sample deviation over members of their estimates: what training, not the choice of
        episodes, leaves open; 0 for one member.
        """
        assert data.initial_weights is not None
        values = weighted_mean(self.initial_values(data), data.initial_weights.to(self.device))
        return float(values.std()) if len(values) > 1 else 0.0
