"""What one step of training sees."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InitialBatch:
    """First observations of episodes, with weights (default 1)."""

    observations: Tensor  # (*seeds, B0, S) float32, raw
    weights: Tensor  # (*seeds, B0)

    def to(self, device: torch.device | str) -> InitialBatch:
        return InitialBatch(self.observations.to(device), self.weights.to(device))


@dataclass(frozen=True)
class Batch:
    """B transitions; a sequence of seeds adds a leading axis to every field. Every loss is a
    mean weighted by `weights`.
    """

    observations: Tensor  # (*seeds, B, S) float32, raw and flat
    actions: Tensor  # (*seeds, B, A) in [-1, 1]
    rewards: Tensor  # (*seeds, B) raw
    next_observations: Tensor  # (*seeds, B, S); meaningless where terminations
    terminations: Tensor  # (*seeds, B) bool; truncation is not termination
    rows: Tensor  # (*seeds, B) int64, index into the source arrays
    weights: Tensor  # (*seeds, B)
    initial: InitialBatch | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return Batch(**moved)
