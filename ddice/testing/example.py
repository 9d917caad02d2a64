"""Small data on which the conformance checks run: whole episodes, some of which terminate, with
two actions and three observations.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ddice.data import Batch, Transitions, load_dataset

EPISODES, LENGTH = 12, 10
OBSERVATIONS, ACTIONS = 3, 2


def example_data(seed: int = 0) -> Transitions:
    """12 episodes of 10 transitions in [-1, 1]^2: every third terminates, the others are cut.
    Rewards grow with the first action.
    """
    random = np.random.default_rng(seed)
    count = EPISODES * LENGTH
    last = np.arange(count) % LENGTH == LENGTH - 1
    third = np.arange(count) // LENGTH % 3 == 0
    observations = random.normal(size=(count, OBSERVATIONS))
    actions = np.clip(0.5 * random.normal(size=(count, ACTIONS)), -1, 1)
    arrays = {
        "observations": observations.astype(np.float32),
        "next_observations": np.where(
            last[:, None], random.normal(size=(count, OBSERVATIONS)), np.roll(observations, -1, 0)
        ).astype(np.float32),
        "actions": actions.astype(np.float32),
        "rewards": (actions[:, 0] + 0.1 * random.normal(size=count)).astype(np.float32),
        "terminations": last & third,
        "truncations": last & ~third,
    }
    return load_dataset(arrays, action_bounds=(-1, 1))


def take(batch: Batch, index: torch.Tensor) -> Batch:
    """The rows `index` of a batch of one seed, in that order; the initial observations stay."""
    fields = (f.name for f in dataclasses.fields(Batch) if f.name != "initial")
    return dataclasses.replace(batch, **{name: getattr(batch, name)[index] for name in fields})
