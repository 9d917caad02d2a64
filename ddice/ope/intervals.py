"""Estimates with bootstrap intervals over episodes, and how well they rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddice.core import ranks
from ddice.core.statistics import percentile_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A discounted return from the first states, in raw reward units, with the percentile
    bootstrap interval [low, high].
    """

    value: float
    low: float
    high: float
    method: str  # "self-normalised", "doubly robust" or "fitted Q"
    of: str  # whose value it is

    def __str__(self) -> str:
        return (
            f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] ({self.method}; value of "
            f"{self.of})"
        )


def bootstrap(
    units: Floats,
    starts: Floats,
    paired: bool,
    statistic: Callable[[Floats, Floats], float],
    repetitions: int,
    seed: int,
) -> Floats:
    """`statistic` of the column sums of resampled `units` (E, k) and `starts` (E0, m),
    `repetitions` times.

    `paired`: start i belongs to unit i and is drawn with it; otherwise the two are drawn apart.
    """
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(repetitions):
        of_units = _times_drawn(len(units), rng)
        of_starts = of_units if paired else _times_drawn(len(starts), rng)
        # (k,) and (m,): counts times rows are the column sums of a resample that is never made.
        samples.append(statistic(of_units @ units, of_starts @ starts))
    return np.array(samples)


def _times_drawn(count: int, rng: np.random.Generator) -> Floats:
    """How often each of `count` is drawn in a resample of as many, (count,)."""
    return np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)


def interval(samples: Floats, level: float) -> tuple[float, float]:
    """Percentiles of the samples that are finite; NaN when none is (no resample held any
    weight).
    """
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return float("nan"), float("nan")
    return percentile_interval(finite, level)


def rank_correlation(estimates: ArrayLike, truths: ArrayLike) -> float:
    """Spearman's rank correlation of two sequences (n,), ties sharing their mean rank; NaN where
    one is constant.

    Raises ValueError for different lengths or fewer than two entries.
    """
    x, y = np.asarray(estimates, np.float64), np.asarray(truths, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(
            f"expected two sequences of the same length, at least 2, got shapes {x.shape} and "
            f"{y.shape}"
        )
    return float(ranks.rank_correlation(torch.from_numpy(x), torch.from_numpy(y)))
