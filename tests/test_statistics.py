from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, trim_mean

from ddice.core import statistics

# 4 runs, 3 tasks; per-task means 2.5, 25 and 0.
BY_HAND = np.array([[1.0, 10.0, 0.0], [2.0, 20.0, 0.0], [3.0, 30.0, -4.0], [4.0, 40.0, 4.0]])


def test_aggregates_of_a_matrix_worked_out_by_hand() -> None:
    assert statistics.mean(BY_HAND) == pytest.approx(27.5 / 3)
    assert statistics.median(BY_HAND) == pytest.approx(2.5)
    # Sorted: -4 0 0 | 1 2 3 4 4 10 | 20 30 40; a quarter of 12 goes at either end.
    assert statistics.iqm(BY_HAND) == pytest.approx(24 / 6)
    # min(score, 1): 1 1 1 1, 1 1 1 1, 0 0 -4 1 -> mean 5/12.
    assert statistics.optimality_gap(BY_HAND) == pytest.approx(1 - 5 / 12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (5, 4), (7, 9), (10,)])
def test_iqm_equals_the_trimmed_mean_of_scipy(shape: tuple[int, ...]) -> None:
    scores = np.random.default_rng(0).normal(size=shape)
    assert statistics.iqm(scores) == pytest.approx(
        trim_mean(scores, proportiontocut=0.25, axis=None)
    )


def test_probability_of_improvement_by_hand_and_by_the_u_statistic() -> None:
    # Task 1: 3 > 2 is one win of the two pairs and 2 = 2 half a win; task 2: no win.
    assert statistics.probability_of_improvement(
        [[2.0, 0.0], [3.0, 0.0]], [[2.0, 1.0]]
    ) == pytest.approx((1.5 / 2 + 0) / 2)
    generator = np.random.default_rng(1)
    ours, theirs = (
        generator.integers(0, 5, size=(6, 3)).astype(float),
        generator.integers(0, 5, size=(4, 3)).astype(float),
    )
    expected = np.mean(
        [mannwhitneyu(ours[:, task], theirs[:, task]).statistic / (6 * 4) for task in range(3)]
    )
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx(expected)
    assert statistics.probability_of_improvement(ours, ours) == pytest.approx(0.5)


def test_interval_equals_the_quantiles_of_every_possible_resample() -> None:
    # Two runs of two tasks: 16 equally likely resamples, drawn independently per task; the mean
    # takes 9 values.
    scores = np.array([[0.0, 0.0], [1.0, 10.0]])
    exact = [
        np.mean([scores[a, 0], scores[b, 0], scores[c, 1], scores[d, 1]])
        for a, b, c, d in product(range(2), repeat=4)
    ]
    low, high = statistics.stratified_interval(
        scores, statistics.mean, level=0.4, repetitions=20_001
    )
    assert (
        (low, high)
        == (
            np.quantile(exact, 0.3, method="inverted_cdf"),
            np.quantile(exact, 0.7, method="inverted_cdf"),
        )
        == (2.5, 3.0)
    )


def test_interval_is_seeded_covers_the_truth_and_shrinks_with_runs() -> None:
    generator = np.random.default_rng(2)
    few, many = generator.normal(size=(10, 3)), generator.normal(size=(1000, 3))
    assert statistics.stratified_interval(few, seed=3) == statistics.stratified_interval(
        few, seed=3
    )
    assert statistics.stratified_interval(few, seed=3) != statistics.stratified_interval(
        few, seed=4
    )
    narrow, wide = (
        statistics.stratified_interval(scores, statistics.mean, repetitions=500)
        for scores in (many, few)
    )
    # The exact standard error of the mean of 3000 standard normal numbers is 0.01826.
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * 0.01826, rel=0.15)
    assert wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])
    covered = 0
    for trial in range(100):
        low, high = statistics.stratified_interval(
            generator.normal(size=(20, 2)), statistics.mean, repetitions=200, seed=trial
        )
        covered += low <= 0 <= high
    assert 85 <= covered <= 100


def test_improvement_interval_holds_certainties_and_contains_the_estimate() -> None:
    better, worse = np.array([[2.0], [3.0]]), np.array([[0.0], [1.0]])
    assert statistics.improvement_interval(better, worse, repetitions=50) == (1.0, 1.0)
    generator = np.random.default_rng(5)
    ours, theirs = generator.normal(0.5, size=(8, 2)), generator.normal(size=(8, 2))
    low, high = statistics.improvement_interval(ours, theirs, repetitions=300)
    assert low < statistics.probability_of_improvement(ours, theirs) < high


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((0, 3)), r"at least one of each, got \(0, 3\)"),
        (np.zeros((2, 2, 2)), r"got \(2, 2, 2\)"),
        ([[0.0, np.nan]], "nan in run 0, task 1"),
    ],
)
def test_bad_scores_are_named(scores: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        statistics.iqm(scores)  # type: ignore[arg-type]


def test_unequal_tasks_and_levels_outside_are_errors() -> None:
    with pytest.raises(ValueError, match="got 2 and 3 columns"):
        statistics.probability_of_improvement(np.zeros((1, 2)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="0 < level < 1"):
        statistics.stratified_interval([1.0, 2.0], level=95)
