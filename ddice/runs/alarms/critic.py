"""What the members of a critic say of actions: of such as the data hold, and of others."""

from __future__ import annotations

import torch
from torch import Tensor

from ddice.core.ranks import centred_ranks

# Within 1 % of half the range: solvers end at t_min, whose noise has a deviation of 1 %.
EDGE = 0.99


def best_above(
    candidates: Tensor,  # (B, N), scores of N actions in each state
    data: Tensor,  # (B,), scores of the data's actions
) -> Tensor:  # ()
    """Mean over states of max_n score(s, a_n) - score(s, a), in deviations of the data's scores;
    NaN where these are all the same.
    """
    margin = (candidates.amax(-1) - data).mean()
    deviation = data.std(correction=0)
    return torch.where(deviation > 0, margin / deviation, torch.nan)


def share_above(
    candidates: Tensor,  # (B, N)
    data: Tensor,  # (B,)
) -> Tensor:  # ()
    """Share of states in which the best of N actions scores above the data's: N / (N + 1) for
    scores that know nothing of actions.
    """
    return (candidates.amax(-1) > data).to(data.dtype).mean()


def agreement(
    scores: Tensor,  # (M, B, N), of M members, or of M seeds
) -> Tensor:  # () float64
    """Spearman's rank correlation over the N candidates of a state, averaged over pairs of members
    and over states: 1 where all rank alike, 0 where a ranking is each member's own.

    States in which a member gives all candidates the same are left out; NaN where that leaves none,
    and for one member.
    """
    members = len(scores)
    centred = centred_ranks(scores.movedim(0, 1))  # (B, M, N), each of length 1
    # The inner products of all pairs are |sum|^2 less those of each with itself, which are 1.
    pairs = (centred.sum(1).square().sum(-1) - members) / (members * (members - 1) or torch.nan)
    return pairs.nanmean()


def share_at_edge(
    actions: Tensor,  # (..., A) in [-1, 1]
) -> Tensor:  # ()
    """Share of all coordinates that lie within 1 % of half the range of a bound."""
    return (actions.abs() > EDGE).to(actions.dtype).mean()
