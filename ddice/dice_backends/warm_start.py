"""Backends that may start by regressing values on the returns that were observed."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec, Transitions
from ddice.dice_backends.base import Backend, BackendConfig


class WarmStartConfig(BackendConfig, abstract=True):
    """The fields of a trained backend, and the warm start."""

    warm_start_steps: int = Field(
        0, ge=0, description="first steps that regress values on observed returns-to-go instead"
    )


class WarmStartBackend(Backend):
    """A backend whose first steps may regress V (and Q) on returns-to-go, sum_k gamma^k r_k from
    the row to the end of its episode: values spread at once that bootstrapping carries back by one
    row a step.
    """

    config: WarmStartConfig

    def __init__(self, config: WarmStartConfig, spec: Spec, seed: Seed):
        super().__init__(config, spec, seed)
        self._returns: Tensor | None = None

    @property
    def warm_up(self) -> int:
        """The steps of the warm start."""
        return self.config.warm_start_steps

    def prepare(self, data: Transitions) -> None:
        """Compute returns-to-go for a warm start. `fit` calls it; a hand-written loop must, when
        warm_start_steps > 0.
        """
        if self.config.warm_start_steps:
            returns = data.returns_to_go(self.rewards(data.rewards), self.discount)
            # Indexed by the row of the source, as `batch.rows` is; rows that were dropped keep 0
            # and are never drawn.
            self._returns = torch.zeros(
                data.spec.source_rows, device=self.device, dtype=torch.float32
            ).index_put_((data.rows,), returns.to(self.device))

    def warm_start_target(self, batch: Batch, step: int) -> Tensor | None:
        """Returns-to-go of the batch (*seeds, B) while the warm start lasts, else None."""
        if step >= self.config.warm_start_steps:
            return None
        if self._returns is None:
            raise ValueError(
                "warm_start_steps > 0 needs the whole dataset first: call "
                "backend.prepare(data) before backend.update(...)"
            )
        return self._returns[batch.rows]
