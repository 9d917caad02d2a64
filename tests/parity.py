"""How far decisions are from those of a policy's reference, ties apart."""

from __future__ import annotations

import torch
from torch import Tensor

from ddice.diffusion.samplers import SoftmaxSelection
from ddice.policies.engines import Choice
from ddice.policies.policy import Policy


def candidate_error(expected: Choice, got: Choice) -> float:
    """The largest difference of a candidate or an action, over the largest candidate (at least
    1).
    """
    scale = expected.candidates.abs().max().clamp(min=1)
    differences = (
        (got.candidates - expected.candidates).abs().max(),
        (got.actions - expected.actions).abs().max(),
    )
    return (
        float(max(differences) / scale)
        if torch.equal(got.chosen, expected.chosen)
        else float(differences[0] / scale)
    )


def choice_error(
    policy: Policy, observations: Tensor, uniform: Tensor | None, candidates: Tensor, chosen: Tensor
) -> float:
    """How far the indices `chosen` (B,) are from a choice that the policy could make of its
    candidates (B, K, A): 0 for its own, tiny at a tie.

    By rank: the score that was given away, over the largest score. By a softmax sample: how far the
    uniform number is from the chosen one's share.
    """
    config, (batch, count, size) = policy.config, candidates.shape
    if policy.q is None or count == 1:
        return float(chosen.abs().max())
    points = candidates.clamp(-1, 1) if config.clip_candidates == "before_scoring" else candidates
    q = policy.q(observations.repeat_interleave(count, 0), points.reshape(-1, size))
    scores, at = config.selection.scores(q.reshape(-1, batch, count)), chosen[:, None]
    if not isinstance(config.selection, SoftmaxSelection) or uniform is None:
        return float((scores.amax(-1) - scores.gather(-1, at)[:, 0]).max() / scores.abs().max())
    shares = torch.softmax(scores / config.selection.temperature, -1)
    upper = shares.cumsum(-1).gather(-1, at)[:, 0]
    lower = upper - shares.gather(-1, at)[:, 0]
    return float(torch.maximum(lower - uniform, uniform - upper).max().clamp(min=0))
