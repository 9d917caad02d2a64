"""What the ratios and values of a backend say about all rows of its data."""

from __future__ import annotations

import math

import numpy as np
import torch

from ddice.data.measures import episode_returns
from ddice.dice_backends.base import Backend
from ddice.runs.alarms.values import bias, correlation
from ddice.runs.training import Training

ROWS = 65_536  # at once
FALL = 50  # rows


@torch.no_grad()
def backend_numbers(training: Training) -> dict[str, float]:
    """The numbers of a trained backend; NaN for what it or its data have not.

    V and return, V - return: correlation and mean difference, in deviations of the return, of V(s)
    and the discounted return that was observed from there on. weighted: return of the episodes that
    ratio-weighted rows come from, over that of all rows. before falling: mean ratio of the last
    rows before a termination, over the mean of all.
    """
    data, backend = training.data, training.backend()
    names = ("V and return", "V - return", "weighted", "before falling")
    found = dict.fromkeys(names, math.nan)
    if data.episode is None:
        return found
    batches = list(data.batches(ROWS))
    weights = torch.cat([backend.ratio(batch) for batch in batches]).double().numpy()
    returns = episode_returns(data.rewards, data.episode)[data.episode]
    found["weighted"] = float(np.average(returns, weights=weights) / returns.mean())
    if isinstance(backend, Backend) and backend.values_are_returns:
        observed = data.returns_to_go(data.rewards, backend.discount)
        values = torch.cat([backend.value(batch.observations) for batch in batches])
        found["V and return"] = float(correlation(values, observed))
        found["V - return"] = float(bias(values, observed))
    falling = before_termination(data.episode.numpy(), data.terminations.numpy(), FALL)
    if falling.any():
        found["before falling"] = float(weights[falling].mean() / weights.mean())
    return found


def before_termination(
    episode: np.ndarray,  # (N,)
    terminations: np.ndarray,  # (N,) bool
    count: int,
) -> np.ndarray:  # (N,) bool
    """Which rows are among the last `count` of an episode that a termination ends."""
    lengths = np.bincount(episode)
    last = np.cumsum(lengths) - 1
    left = np.repeat(last, lengths) - np.arange(len(episode))
    within: np.ndarray = np.repeat(terminations[last], lengths) & (left < count)
    return within
