"""A behaviour whose diffusion model, tilts and samples are known: a | s ~ N(0.3 s, 0.2^2), s =
-1 or 1, one action dimension.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from oracles import VP, GaussianData
from scipy.stats import norm
from torch import Tensor

import ddice
from ddice.data import Transitions
from ddice.diffusion.networks import ResidualScore
from ddice.diffusion.prior import DiffusionPrior, Prior
from ddice.diffusion.solvers import MultiStep
from ddice.parts.part import Optimizer

STD = 0.2
STATES = torch.tensor([[-1.0], [1.0]])
TIMES = (0.02, 0.1, 0.3, 0.6, 0.9)
CENTRAL = torch.linspace(
    -2.2, 2.2, 45
)  # 97 % of the noise; further out a briefly trained network extrapolates
FINE = MultiStep(evaluations=40, spacing="quadratic")  # on these data within 4e-3 of the exact map


def mean_of(state: float) -> float:
    return 0.3 * state


def behaviour(state: float, shift: float = 0.0) -> GaussianData:
    """The actions of a state; `shift` is that of the mean under a ratio exp(b a): b STD^2."""
    return GaussianData(mean_of(state) + shift, STD)


@cache
def data() -> Transitions:
    """4096 quantiles per state instead of random draws; rewards equal actions, and every row
    ends.
    """
    count = 4096
    state = np.tile([-1.0, 1.0], count)
    actions = np.clip(
        np.repeat(norm.ppf((np.arange(count) + 0.5) / count), 2) * STD + 0.3 * state, -1, 1
    )
    column = state.astype(np.float32)[:, None]
    ends = {"terminations": np.ones(2 * count, bool), "truncations": np.zeros(2 * count, bool)}
    arrays = {
        "observations": column,
        "next_observations": column,
        "actions": actions[:, None],
        "rewards": actions,
        **ends,
    }
    return ddice.load_dataset(arrays, action_bounds=(-1, 1))


SMALL = DiffusionPrior(
    network=ResidualScore(width=64, blocks=2),
    optimizer=Optimizer(learning_rate=3e-3, decay="cosine"),
    batch_size=512,
    ema=0.99,
)


@cache
def prior() -> Prior:
    """Trained once per test session, in some seconds."""
    return SMALL.fit(data(), steps=1500, progress=False)


def grid(state: float, t: float, shift: float = 0.0, reach: float = 2.2) -> Tensor:
    """(45, 1) noised actions that cover those of a state at time t."""
    model = behaviour(state, shift)
    return (VP().alpha(t) * model.mean + model.deviation(t) * torch.linspace(-reach, reach, 45))[
        :, None
    ]
