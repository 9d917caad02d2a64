"""Aggregates over a matrix of scores, one row per run (seed) and one column per task, with
stratified bootstrap intervals; closed intervals for the mean of a few numbers and for a share.

Definitions and names of the aggregates follow Agarwal et al., "Deep Reinforcement Learning at the
Edge of the Statistical Precipice" (NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]
Statistic = Callable[[Scores], float]

# The share cut off at either end by the interquartile mean.
TRIMMED_SHARE = 0.25
HALVINGS = 60  # of an angle below pi / 2: past the last digit of float64


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


def performance_profile(
    scores: ArrayLike,  # (runs, tasks)
    thresholds: ArrayLike,  # (T,)
) -> Scores:  # (T,)
    """The share of all runs of all tasks whose score is above each threshold: the run-score
    distribution.
    """
    ordered = np.sort(as_matrix(scores), axis=None)
    above = ordered.size - np.searchsorted(ordered, np.asarray(thresholds), side="right")
    share: Scores = above / ordered.size
    return share


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


def profile_interval(
    scores: ArrayLike,  # (runs, tasks)
    thresholds: ArrayLike,  # (T,)
    *,
    level: float = 0.95,
    repetitions: int = 2000,
    seed: int = 0,
) -> tuple[Scores, Scores]:  # (T,) and (T,)
    """The stratified bootstrap interval of `performance_profile`, at each threshold by itself."""
    check_level(level, repetitions)
    matrix, generator = as_matrix(scores), np.random.default_rng(seed)
    samples = [
        performance_profile(_resampled(matrix, generator), thresholds) for _ in range(repetitions)
    ]
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def student_factor(level: float, freedom: int) -> float:
    """The t with P(|T| <= t) = level, where T has Student's distribution with `freedom` degrees of
    freedom: Abramowitz and Stegun 26.7.3 and 26.7.4, solved by bisection.

    Raises ValueError unless 0 < level < 1 and freedom >= 1.
    """
    check_level(level, freedom)
    low, high = 0.0, np.pi / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _student_share(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return float(np.sqrt(freedom) * np.tan((low + high) / 2))


def _student_share(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle))."""
    squared = np.cos(angle) ** 2
    if freedom % 2 == 0:
        # 1 + 1/2 cos^2 + (1 3)/(2 4) cos^4 + ...
        over = np.arange(2, freedom, 2)
        return float(np.sin(angle) * (1 + np.cumprod((over - 1) / over * squared).sum()))
    # cos + 2/3 cos^3 + (2 4)/(3 5) cos^5 + ...
    over = np.arange(3, freedom, 2)
    series = np.cos(angle) * (1 + np.cumprod((over - 1) / over * squared).sum())
    return float(2 / np.pi * (angle + (np.sin(angle) * series if freedom > 1 else 0.0)))


def student_interval(
    samples: Sequence[ArrayLike],  # of each task (n,), n >= 2
    level: float = 0.95,
) -> tuple[float, float]:
    """Student's interval of the mean over tasks of the mean of each task's numbers: for normal
    numbers of one task it holds the truth in a share `level` of all cases, however few they are.
    Over several tasks the degrees of freedom are those of Welch and Satterthwaite, rounded down.

    Raises ValueError without a task, and for a task of fewer than two numbers.
    """
    columns = [as_matrix(column)[:, 0] for column in samples]
    if not columns or min(map(len, columns)) < 2:
        raise ValueError(
            "expected at least one task and at least two numbers of each, got "
            f"{[len(column) for column in columns]}"
        )
    centre = float(np.mean([column.mean() for column in columns]))
    # of the sum of the tasks' means
    parts = np.array([column.var(ddof=1) / len(column) for column in columns])
    variance = float(parts.sum())
    if variance == 0:
        return centre, centre
    freedoms = np.array([len(column) - 1 for column in columns])
    # Rounding must not take one off where all tasks are alike.
    freedom = int(variance**2 / (parts**2 / freedoms).sum() + 1e-9)
    reach = student_factor(level, freedom) * np.sqrt(variance) / len(columns)
    return centre - float(reach), centre + float(reach)


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of which `successes` among independent `trials` were seen
    (1927): within [0, 1], and of some width when none or all succeeded.

    Raises ValueError unless 0 <= successes <= trials and trials >= 1.
    """
    check_level(level, 1)
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"expected 0 <= successes <= trials and a trial, got {successes} of {trials}"
        )
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    reach = (spread * share * (1 - share) + spread**2 / 4) ** 0.5 / (1 + spread)
    # Rounding would leave a trace of what is exactly 0 or 1.
    low = 0.0 if successes == 0 else centre - reach
    high = 1.0 if successes == trials else centre + reach
    return low, high
