"""The transitions that alarms look at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ddice.core.randomness import randint
from ddice.data import Transitions

# States of a look. What varies from state to state is a tenth of a deviation of Q; its mean over
# 512 is known to half a hundredth.
STATES = 512
# The rows, actions and noise are those of no training: streams of their own, the same in all runs.
SEED = 0


def some_rows(data: Transitions) -> Tensor:  # (STATES,)
    """The places of the transitions that are looked at."""
    return randint(SEED, "alarms/rows", 0, len(data), (STATES,), data.device)


@dataclass(frozen=True)
class Looked:
    """What is looked at: transitions that parts are trained on, and where there are any, others
    that are held out.
    """

    training: Transitions
    held_out: Transitions | None

    @property
    def unseen(self) -> Transitions:
        """The held-out ones, else those of the training."""
        return self.training if self.held_out is None else self.held_out

    @property
    def identity(self) -> str:
        """Of what is not in the training itself."""
        return "none" if self.held_out is None else self.held_out.spec.fingerprint
