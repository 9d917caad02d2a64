"""Selection: which of K candidates is played, by Q."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.config import Config


class Selection(Config):
    """argmax of the ensemble's mean or minimum, or a sample from softmax(mean / temperature)."""

    rule: Literal["mean", "minimum", "softmax"] = "mean"
    temperature: float = Field(1.0, gt=0, description='of "softmax", in units of Q')

    def scores(self, q: Tensor) -> Tensor:
        """The members q (M, ...) reduced to the numbers that candidates are ranked by, (...)."""
        return q.amin(0) if self.rule == "minimum" else q.mean(0)

    def select(self, q: Tensor, uniform: Tensor | None) -> Tensor:
        """q (M, B, K) and, for a softmax sample, uniform numbers (B,) -> indices (B,); without
        them the argmax is taken.
        """
        scores = self.scores(q)
        if self.rule != "softmax" or uniform is None:
            return scores.argmax(-1)
        cumulative = torch.softmax(scores / self.temperature, -1).cumsum(-1)
        return (cumulative < uniform[:, None] * cumulative[:, -1:]).sum(-1)
