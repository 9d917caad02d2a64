"""Aggregates over a matrix of scores, one row per run (seed) and one column per task, with
stratified bootstrap intervals.

Definitions and names follow Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice" (NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]
Statistic = Callable[[Scores], float]

# The share cut off at either end by the interquartile mean.
TRIMMED_SHARE = 0.25


def as_matrix(scores: ArrayLike) -> Scores:
    """scores (runs,) or (runs, tasks) -> (runs, tasks) float64; one axis is taken as the runs of a
    single task.

    Raises ValueError for another rank, an empty axis, NaN or infinity.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(
            "expected scores of shape (runs,) or (runs, tasks) with at least one of each, got "
            f"{np.shape(scores)}"
        )
    if not np.isfinite(matrix).all():
        run, task = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(
            f"expected finite scores, got {matrix[run, task]} in run {run}, task {task}: leave "
            "failed runs out, and say so"
        )
    return matrix


def mean(scores: ArrayLike) -> float:
    """The mean over tasks of the mean over runs; scores (runs, tasks)."""
    return float(as_matrix(scores).mean(axis=0).mean())


def median(scores: ArrayLike) -> float:
    """The median over tasks of the mean over runs; scores (runs, tasks)."""
    return float(np.median(as_matrix(scores).mean(axis=0)))


def iqm(scores: ArrayLike) -> float:
    """The interquartile mean: the mean of what is left of all N = runs x tasks scores without
    the floor(N/4) lowest and highest.
    """
    ordered = np.sort(as_matrix(scores), axis=None)
    # Rounded down, as `scipy.stats.trim_mean` does, on which the authors' rliable relies.
    cut = int(TRIMMED_SHARE * ordered.size)
    return float(ordered[cut : ordered.size - cut].mean())


def optimality_gap(scores: ArrayLike, target: float = 1.0) -> float:
    """target - mean(min(score, target)): how far the runs stay below `target`, beyond which more
    counts nothing.
    """
    return float(target - np.minimum(as_matrix(scores), target).mean())


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> float:
    """The mean over tasks of P(a run of `scores` beats one of `others`), draws counting one half.

    scores (runs, tasks) and others (other runs, tasks). Raises ValueError when the numbers of tasks
    differ.
    """
    ours, theirs = as_matrix(scores), as_matrix(others)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"expected the same tasks on both sides, got {ours.shape[1]} and {theirs.shape[1]} "
            "columns"
        )
    # (runs, other runs, tasks): the Mann-Whitney U of each task, over the number of its pairs.
    difference = ours[:, None] - theirs[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def _resampled(scores: Scores, generator: np.random.Generator) -> Scores:
    runs, tasks = scores.shape
    return np.take_along_axis(scores, generator.integers(runs, size=(runs, tasks)), axis=0)


def percentile_interval(samples: ArrayLike, level: float) -> tuple[float, float]:
    """The percentiles (1 - level) / 2 and (1 + level) / 2 of samples (n,), at least one."""
    low, high = np.quantile(np.asarray(samples), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def check_level(level: float, repetitions: int) -> None:
    """Raise ValueError unless 0 < level < 1 and repetitions >= 1."""
    if not 0 < level < 1 or repetitions < 1:
        raise ValueError(
            f"expected 0 < level < 1 and repetitions >= 1, got level={level} and "
            f"repetitions={repetitions}"
        )


def stratified_interval(
    scores: ArrayLike,
    statistic: Statistic = iqm,
    *,
    level: float = 0.95,
    repetitions: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap interval of `statistic`: runs are drawn with replacement, anew for
    each task; tasks are kept.

    scores (runs, tasks) -> (low, high), a function of `seed` alone. With one run the interval is a
    point: it says nothing about the spread.
    """
    check_level(level, repetitions)
    matrix, generator = as_matrix(scores), np.random.default_rng(seed)
    return percentile_interval(
        [statistic(_resampled(matrix, generator)) for _ in range(repetitions)], level
    )


def improvement_interval(
    scores: ArrayLike,
    others: ArrayLike,
    *,
    level: float = 0.95,
    repetitions: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The stratified bootstrap interval of `probability_of_improvement`; both sides are
    resampled.
    """
    check_level(level, repetitions)
    ours, theirs, generator = as_matrix(scores), as_matrix(others), np.random.default_rng(seed)
    samples = [
        probability_of_improvement(_resampled(ours, generator), _resampled(theirs, generator))
        for _ in range(repetitions)
    ]
    return percentile_interval(samples, level)
