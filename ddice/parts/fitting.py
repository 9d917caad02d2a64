"""`fit`, for configurations and for the parts that they build: one stage, run at once."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

import torch

from ddice.core.randomness import Seed
from ddice.data import Spec, Transitions
from ddice.parts import loop
from ddice.parts.stage import Trainable, alone, run_stage

P = TypeVar("P", bound=Trainable)


class GoesOn:
    """A part that can be trained for more steps at once."""

    def fit(
        self: P,
        data: Transitions,
        *,
        steps: int | None = None,
        progress: bool = True,
        on_step: loop.OnStep | None = None,
        checkpoint: str | Path | None = None,
    ) -> P:
        """Train for `steps` more steps. With `checkpoint`, a killed call goes on from that file
        and ends bit-identical on the CPU.

        on_step: called after each step with its number and metrics. Raises TypeError without
        steps, unless there is nothing to train.
        """
        run_stage(
            alone(self, steps=steps),
            data.to(self.device),
            progress=progress,
            on_step=on_step,
            checkpoint=checkpoint,
        )
        return self


class Fits(Generic[P]):
    """A configuration that `build`s a part P, and can train it at once."""

    @abstractmethod
    def build(self, spec: Spec, seed: Seed = 0) -> P:
        """The trainable part, untrained."""

    def fit(
        self,
        data: Transitions,
        *,
        steps: int | None = None,
        seed: Seed = 0,
        device: str | torch.device = "auto",
        progress: bool = True,
        on_step: loop.OnStep | None = None,
        checkpoint: str | Path | None = None,
    ) -> P:
        """Build the part and train it for `steps` steps on a device; see `GoesOn.fit` for the
        other arguments.
        """
        # Built on the CPU and then moved, so that every device starts from the same parameters.
        part = self.build(data.spec, seed).to(loop.resolve_device(device))
        run_stage(
            alone(part, steps=steps),
            data.to(part.device),
            progress=progress,
            on_step=on_step,
            checkpoint=checkpoint,
        )
        return part
