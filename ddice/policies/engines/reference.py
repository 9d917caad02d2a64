"""The readable engine: the sampler and Q as they were trained. Every other engine is held to it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ddice.dice_backends.q_function import QFunction
from ddice.policies.engines.base import Choice, Engine, Procedure


class ReferenceEngine(Engine):
    """sampler -> clip -> q of every candidate -> selection."""

    name: ClassVar[str] = "reference"

    def __init__(self, procedure: Procedure, *, rows_per_call: int):
        super().__init__(rows_per_call)
        self.procedure = procedure

    def run(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
        raw = self.procedure.sampler(observations, noise)
        candidates = raw.clamp(-1, 1) if self.procedure.clip_before_scoring else raw
        index = self.select(observations, candidates, uniform)
        return Choice(
            candidates[torch.arange(len(candidates), device=candidates.device), index].clamp(-1, 1),
            raw,
            index,
        )

    def select(self, observations: Tensor, candidates: Tensor, uniform: Tensor | None) -> Tensor:
        """Which of the candidates (B, K, A) is chosen, (B,)."""
        (batch, count, size), q_function = candidates.shape, self.procedure.q
        if q_function is None or count == 1:
            return torch.zeros(batch, dtype=torch.int64, device=candidates.device)
        q = q_function(
            observations.repeat_interleave(count, 0), candidates.reshape(batch * count, size)
        )
        if q.ndim not in (1, 2) or q.shape[-1] != batch * count:
            raise ValueError(
                f"expected q(observations, actions) of shape (M, {batch * count}) or "
                f"({batch * count},), got {tuple(q.shape)}"
            )
        # Networks of ours have finite weights; a callable of the user's may give anything.
        scores = q.reshape(-1, batch, count)
        if not isinstance(q_function, QFunction) and scores.isnan().any().item():
            raise ValueError(
                f"q(observations, actions) gave NaN for {int(scores.isnan().any(0).sum())} of "
                f"{batch * count} candidates: nothing can be chosen by it"
            )
        return self.procedure.selection.select(scores, uniform)
