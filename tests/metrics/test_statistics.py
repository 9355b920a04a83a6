"""Clustered bootstrap, paired comparison and Holm against closed forms, simulation and hand computation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from veilray.errors import DataError, UsageError
from veilray.metrics.statistics import clustered_bootstrap, holm, paired_comparison, smallest_p_value


def test_equal_clusters_have_the_spread_of_their_means() -> None:
    random = np.random.default_rng(1)
    means = random.normal(30, 2, 400)
    values = (means[:, None] + [-0.5, 0.0, 0.5]).ravel()
    interval = clustered_bootstrap(values, np.repeat(np.arange(400), 3), resamples=20_000, seed=4)
    # The bootstrap of a mean has the variance of the sample (its 1/n form) over n, and is normal for so many patients.
    half = stats.norm.ppf(0.975) * means.std() / np.sqrt(400)
    assert interval.mean == pytest.approx(means.mean())
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.03)
    assert interval.high - interval.mean == pytest.approx(half, rel=0.05)


def test_few_clusters_give_the_quantiles_of_every_possible_resample() -> None:
    clusters = {"a": [1.0], "b": [2.0, 4.0], "c": [9.0, 7.0, 8.0]}
    values = np.array([value for own in clusters.values() for value in own])
    labels = [label for label, own in clusters.items() for _ in own]
    resamples = [np.mean(np.concatenate(draw)) for draw in itertools.product(clusters.values(), repeat=3)]
    interval = clustered_bootstrap(values, labels, resamples=200_000, seed=2, confidence=0.8)
    low, high = np.quantile(resamples, [0.1, 0.9])
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(low, abs=1e-9)
    assert interval.high == pytest.approx(high, abs=1e-9)


@pytest.mark.slow
def test_it_covers_the_truth_where_an_image_wise_interval_does_not() -> None:
    patients, images, trials = 60, 6, 250
    labels = np.repeat(np.arange(patients), images)
    clustered = image_wise = 0
    for trial in range(trials):
        random = np.random.default_rng(trial)
        values = np.repeat(random.normal(0, 1, patients), images) + random.normal(0, 0.5, patients * images)
        own = clustered_bootstrap(values, labels, resamples=500, seed=trial)
        naive = clustered_bootstrap(values, np.arange(len(values)), resamples=500, seed=trial)
        clustered += own.low <= 0.0 <= own.high
        image_wise += naive.low <= 0.0 <= naive.high
    assert 0.90 <= clustered / trials <= 0.98
    assert image_wise / trials < 0.75


def test_one_seed_gives_one_interval_in_any_order_of_the_images() -> None:
    random = np.random.default_rng(3)
    values, labels = random.normal(size=50), random.integers(12, size=50).astype(str)
    order = random.permutation(50)
    first = clustered_bootstrap(values, labels, seed=8)
    shuffled = clustered_bootstrap(values[order], labels[order], seed=8)
    assert shuffled.low == pytest.approx(first.low, abs=1e-12)
    assert shuffled.high == pytest.approx(first.high, abs=1e-12)
    assert clustered_bootstrap(values, labels, seed=9) != first


@pytest.mark.slow
def test_many_patients_are_drawn_block_by_block() -> None:
    values = np.random.default_rng(1).normal(size=300_000)
    interval = clustered_bootstrap(values, np.arange(300_000), resamples=40, seed=1)
    assert interval.low < values.mean() < interval.high
    assert interval.high - interval.low < 5 / np.sqrt(300_000)


def test_a_single_patient_has_no_interval() -> None:
    with pytest.raises(DataError, match="one patient"):
        clustered_bootstrap(np.array([1.0, 2.0]), ["p", "p"], seed=1)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match="1 of 3 scores"):
        clustered_bootstrap(np.array([1.0, bad, 2.0]), ["a", "b", "c"], seed=1)
    with pytest.raises(DataError, match="1 of 2 scores"):
        paired_comparison(np.array([1.0, bad]), np.array([1.0, bad]), ["a", "b"], higher_is_better=True, seed=1)


@pytest.mark.parametrize(
    ("values", "labels", "options"),
    [
        (np.zeros(3), ["a", "b"], {}),
        (np.zeros(0), [], {}),
        (np.zeros((2, 2)), ["a", "b"], {}),
        (np.zeros(2), ["a", "b"], {"resamples": 0}),
        (np.zeros(2), ["a", "b"], {"confidence": 1.0}),
    ],
)
def test_misuse_is_refused(values: np.ndarray, labels: list[str], options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        clustered_bootstrap(values, labels, seed=1, **options)  # type: ignore[arg-type]


def test_a_paired_comparison_on_patients_by_hand() -> None:
    second = np.array([30.0, 31.0, 29.0, 28.0, 33.0, 30.5])
    first = second + np.array([1.0, 3.0, -0.5, 0.25, 0.0, 0.75])
    patients = ["a", "a", "b", "c", "d", "e"]
    result = paired_comparison(first, second, patients, higher_is_better=True, seed=1)
    # Patients' means 2, -0.5, 0.25, 0, 0.75: Pratt ranks them 5, 3, 2, (1), 4.
    expected = stats.wilcoxon([2.0, -0.5, 0.25, 0.0, 0.75], zero_method="pratt").pvalue
    assert result.p_value == pytest.approx(expected)
    assert result.share_won == pytest.approx(4.5 / 6)
    assert (result.n_images, result.n_patients) == (6, 5)
    assert result.difference == clustered_bootstrap(first - second, patients, seed=1)


def test_the_exact_signed_rank_distribution_is_used_for_few_patients() -> None:
    differences = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    result = paired_comparison(differences, np.zeros(6), range(6), higher_is_better=True, seed=1)
    assert result.p_value == pytest.approx(2 / 2**6)


@pytest.mark.parametrize("n_patients", [2, 4, 7])
def test_the_smallest_p_value_is_that_of_a_method_that_always_wins(n_patients: int) -> None:
    gains = np.arange(1.0, n_patients + 1.0)
    won = paired_comparison(gains, np.zeros(n_patients), range(n_patients), higher_is_better=True, seed=1).p_value
    assert smallest_p_value(n_patients, tests=1) == pytest.approx(won)
    for others in ([won, won], [1.0, 1.0]):
        assert smallest_p_value(n_patients, tests=3) == pytest.approx(min(holm([won, *others])))


def test_where_lower_is_better_the_share_turns_round_and_the_difference_does_not() -> None:
    first, second = np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.3, 0.2])
    result = paired_comparison(first, second, ["a", "b", "c"], higher_is_better=False, seed=1)
    assert result.share_won == pytest.approx(2 / 3)
    assert result.difference.mean == pytest.approx(-0.1 / 3)


def test_seeds_are_averaged_before_anything_else() -> None:
    random = np.random.default_rng(5)
    first, second = random.normal(1, 1, (3, 20)), random.normal(0, 1, (2, 20))
    labels = np.repeat(np.arange(10), 2)
    averaged = paired_comparison(first.mean(axis=0), second.mean(axis=0), labels, higher_is_better=True, seed=1)
    assert paired_comparison(first, second, labels, higher_is_better=True, seed=1) == averaged


def test_methods_that_never_differ_are_not_told_apart() -> None:
    scores = np.array([30.0, 31.0, 32.0])
    result = paired_comparison(scores, scores, ["a", "b", "c"], higher_is_better=True, seed=1)
    assert (result.p_value, result.share_won, result.difference.low, result.difference.high) == (1.0, 0.5, 0.0, 0.0)


def test_paired_scores_of_different_images_are_refused() -> None:
    with pytest.raises(UsageError, match="same images"):
        paired_comparison(np.zeros(3), np.zeros(4), ["a", "b", "c"], higher_is_better=True, seed=1)


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, then no smaller than the one before: .02 .03 .06 .06
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_holm_cuts_at_one_keeps_ties_and_leaves_a_single_value() -> None:
    np.testing.assert_allclose(holm([0.6, 0.5, 0.5]), [1.0, 1.0, 1.0])
    np.testing.assert_allclose(holm([0.02, 0.02]), [0.04, 0.04])
    np.testing.assert_allclose(holm([0.03]), [0.03])
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_holm_refuses_what_is_no_probability(bad: float) -> None:
    with pytest.raises(UsageError):
        holm([0.5, bad])
