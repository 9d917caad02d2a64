from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, mannwhitneyu, t, trim_mean, ttest_1samp

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


def test_a_profile_counts_the_runs_above_a_threshold() -> None:
    # Of the twelve scores by hand, above -5: all; above 0: nine without -4, 0, 0; above 4: 10, 20,
    # 30, 40, since 4 itself is not above 4; above 40: none.
    found = statistics.performance_profile(BY_HAND, [-5.0, 0.0, 4.0, 40.0])
    np.testing.assert_allclose(found, [1.0, 9 / 12, 4 / 12, 0.0])


def test_the_band_of_a_profile_is_that_of_its_share_at_each_threshold() -> None:
    thresholds = np.array([0.0, 3.0])
    low, high = statistics.profile_interval(BY_HAND, thresholds, repetitions=300, seed=1)
    for place, threshold in enumerate(thresholds):
        expected = statistics.stratified_interval(
            BY_HAND,
            lambda scores, above=threshold: float((scores > above).mean()),
            repetitions=300,
            seed=1,
        )
        assert (low[place], high[place]) == pytest.approx(expected)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 119, 2999])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_the_factor_of_student(freedom: int, level: float) -> None:
    assert statistics.student_factor(level, freedom) == pytest.approx(
        t.ppf((1 + level) / 2, freedom), rel=1e-9
    )


def test_the_interval_of_student_by_hand_and_over_tasks() -> None:
    # Mean 2, deviation 1, standard error 1 / sqrt 3, factor of two degrees of freedom 4.302653.
    assert statistics.student_interval([[1.0, 2.0, 3.0]]) == pytest.approx(
        (2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5)
    )
    numbers = np.random.default_rng(6).normal(size=9)
    expected = ttest_1samp(numbers, 0.0).confidence_interval(0.9)
    assert statistics.student_interval([numbers], 0.9) == pytest.approx(
        (expected.low, expected.high)
    )
    # Two tasks alike but for their means, 2 and 12: half of the sum of two variances of 1/3 each,
    # and 2 + 2 degrees of freedom, whose factor is 2.776445.
    reach = 2.776445 * (2 / 3) ** 0.5 / 2
    both = [[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]]
    assert statistics.student_interval(both) == pytest.approx((7 - reach, 7 + reach))
    # A task that never varies takes nothing from the freedom of the other, and halves its width.
    low, high = statistics.student_interval([[1.0, 2.0, 3.0], [5.0, 5.0]])
    assert (low, high) == pytest.approx((3.5 - 4.302653 / 12**0.5, 3.5 + 4.302653 / 12**0.5))
    assert statistics.student_interval([[4.0, 4.0]]) == (4.0, 4.0)


def test_with_three_seeds_the_interval_of_student_holds_and_the_bootstrap_does_not() -> None:
    """Of 400 draws of three normal numbers, 95 % and a deviation of 1.1 %. The percentile bootstrap
    hardly leaves their range, which holds the truth in 1 - 2 / 2^3 = 75 % of all cases.
    """
    draws = np.random.default_rng(7).normal(size=(400, 3))
    intervals = np.array([statistics.student_interval([three]) for three in draws])
    held = ((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)).mean()
    assert 0.92 <= held <= 0.98
    drawn = [
        statistics.stratified_interval(three, statistics.mean, repetitions=200) for three in draws
    ]
    assert np.mean([low <= 0 <= high for low, high in drawn]) < 0.8


def test_the_interval_of_wilson() -> None:
    # The numbers of Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, trials, expected in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ):
        found = statistics.wilson_interval(successes, trials)
        assert found == pytest.approx(expected, abs=5e-5)
        mirrored = statistics.wilson_interval(trials - successes, trials)
        assert mirrored == pytest.approx((1 - expected[1], 1 - expected[0]), abs=5e-5)
    # Near its level over all outcomes of 30 episodes, at a share near an end too.
    for share in (0.03, 0.5, 0.9):
        held = sum(
            binom.pmf(successes, 30, share)
            for successes in range(31)
            if (found := statistics.wilson_interval(successes, 30))[0] <= share <= found[1]
        )
        assert 0.92 <= held <= 0.99


@pytest.mark.slow
def test_all_definitions_are_those_of_rliable() -> None:
    """In an environment where the authors' own package can be imported: arch, on which it stands,
    breaks with pandas 3.
    """
    try:
        from rliable import library, metrics
    except Exception as error:
        pytest.skip(f"rliable cannot be imported here: {error!r}")
    generator = np.random.default_rng(8)
    for runs, tasks in ((3, 1), (5, 4), (10, 7)):
        ours = generator.normal(0.5, size=(runs, tasks))
        theirs = generator.normal(size=(runs + 1, tasks))
        assert statistics.mean(ours) == pytest.approx(metrics.aggregate_mean(ours))
        assert statistics.median(ours) == pytest.approx(metrics.aggregate_median(ours))
        assert statistics.iqm(ours) == pytest.approx(metrics.aggregate_iqm(ours))
        gap = metrics.aggregate_optimality_gap(ours, 1.0)
        assert statistics.optimality_gap(ours) == pytest.approx(gap)
        chance = metrics.probability_of_improvement(ours, theirs)
        assert statistics.probability_of_improvement(ours, theirs) == pytest.approx(chance)
        thresholds = np.linspace(-2, 2, 9)
        profile = [library.run_score_deviation(ours, one) for one in thresholds]
        np.testing.assert_allclose(statistics.performance_profile(ours, thresholds), profile)
    _, intervals = library.get_interval_estimates(
        {"ours": ours}, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=4000
    )
    # Two bootstraps of other random numbers: ends differ by a few per cent of the width.
    found = np.array(statistics.stratified_interval(ours, repetitions=4000))
    width = found[1] - found[0]
    np.testing.assert_allclose(found, intervals["ours"][:, 0], atol=0.06 * width)


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
    with pytest.raises(ValueError, match=r"at least two numbers of each, got \[2, 1\]"):
        statistics.student_interval([[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match="got 3 of 2"):
        statistics.wilson_interval(3, 2)
