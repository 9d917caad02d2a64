"""What policies do to the candidates of the behaviour policy, and whether training seeds agree
about it: on states of the data, with the same noise for all policies of all seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddice.policies.evaluation import Evaluation
from ddice.policies.policy import Policy
from ddice.runs.alarms.critic import agreement

NOISES = 16  # candidates of a state


@dataclass(frozen=True)
class Judged:
    """A policy of one seed, its scores, and candidates (B, N, A) of the behaviour policy of that
    seed. `scores` is None where it was not played.
    """

    policy: Policy
    scores: Evaluation | None
    behaviour: Tensor


def candidates(
    policy: Policy,
    observations: Tensor,  # (B, S)
) -> Tensor:  # (B, N, A)
    """Actions for the same N noises at every state, as the sampler makes them."""
    latents = policy.sampler.latents(NOISES, policy.spec.actions.size)
    with torch.no_grad():
        found: Tensor = policy.sampler(observations, latents.expand(len(observations), -1, -1))
    return found


def spread(
    actions: Tensor,  # (B, N, A)
) -> float:
    """Root mean square deviation of the candidates of a state."""
    return float(actions.std(1).square().mean().sqrt())


def cosine(first: Tensor, second: Tensor) -> float:
    """Of the angle between two moves: their correlation, uncentred."""
    return float((first * second).sum() / (first.norm() * second.norm()).clamp(min=1e-12))


def over_pairs(values: Sequence[Tensor], compare: Callable[[Tensor, Tensor], float]) -> float:
    """The mean of `compare` over all pairs of seeds; NaN for a single seed."""
    pairs = [compare(first, second) for first, second in itertools.combinations(values, 2)]
    return sum(pairs) / len(pairs) if pairs else math.nan


def ranking(
    policy: Policy,
    observations: Tensor,  # (B, S)
    actions: Tensor,  # (B, N, A)
) -> Tensor:  # (B, N)
    """What the policy ranks actions by. Raises ValueError where it has no Q."""
    if policy.q is None:
        raise ValueError("expected a policy with a Q, got one that ranks by nothing")
    batch, count, size = actions.shape
    flat = actions.clamp(-1, 1).reshape(-1, size)
    with torch.no_grad():
        q = policy.q(observations.repeat_interleave(count, 0), flat)
    return policy.config.selection.scores(q.reshape(-1, batch, count))


def policy_numbers(judged: Sequence[Judged], observations: Tensor) -> dict[str, float]:
    """The numbers of one policy, over its seeds; NaN for what it has not."""
    made = [candidates(one.policy, observations) for one in judged]
    moves = [x - one.behaviour for x, one in zip(made, judged, strict=True)]
    widths = [spread(one.behaviour) for one in judged]
    distances = [float(move.square().mean().sqrt()) for move in moves]
    still = not any(distances)
    return {
        "score": _mean([math.nan if one.scores is None else one.scores.mean for one in judged]),
        "outside": _mean([float((x.abs() > 1).any(-1).double().mean()) for x in made]),
        "spread": _mean(_ratios([spread(x) for x in made], widths)),
        "moved": math.nan if still else _mean(_ratios(distances, widths)),
        "agree": math.nan if still else over_pairs(moves, cosine),
        "rank": _rank_agreement(judged, observations),
        "length": _mean([_length(one.scores) for one in judged]),
    }


def _ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def _rank_agreement(judged: Sequence[Judged], observations: Tensor) -> float:
    """How far the seeds agree in what they rank the candidates of one behaviour policy by."""
    if len(judged) < 2 or judged[0].policy.q is None:
        return math.nan
    actions = judged[0].behaviour
    ranked = [ranking(one.policy, observations, actions) for one in judged]
    return float(agreement(torch.stack(ranked)))


def _length(scores: Evaluation | None) -> float:
    return math.nan if scores is None else sum(scores.lengths) / len(scores.lengths)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
