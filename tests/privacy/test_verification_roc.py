"""Areas and rates against brute force and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from veilray.errors import UsageError
from veilray.privacy.pairs import all_pairs
from veilray.privacy.roc import Round, excess, hits_at_one, verification


def _rounds(patients: np.ndarray, scores: np.ndarray) -> list[Round]:
    return [Round(pairs=all_pairs(patients), scores=scores)]


def test_where_all_weigh_alike_the_area_is_that_of_mann_and_whitney() -> None:
    patients = np.repeat(np.arange(30), 2)
    scores = np.random.default_rng(1).normal(size=60 * 59 // 2) + 0.7 * all_pairs(patients).genuine
    genuine = all_pairs(patients).genuine
    found = verification(_rounds(patients, scores), patients, seeds=1, seed=0)
    assert found is not None
    expected = stats.mannwhitneyu(scores[genuine], scores[~genuine]).statistic / (30 * (~genuine).sum())
    assert found.auc.value == pytest.approx(expected, abs=1e-6)
    assert found.auc_pairs == pytest.approx(expected, abs=1e-6)
    assert found.auc.low is not None
    assert found.auc.high is not None
    assert found.auc.low < expected < found.auc.high
    assert (found.n_genuine, found.n_impostors, found.n_patients) == (30, len(genuine) - 30, 30)


def test_every_patient_weighs_the_same_whatever_the_number_of_images() -> None:
    patients = np.array([0] * 6 + [1] * 2 + [2, 3, 4])
    pairs = all_pairs(patients)
    scores = np.random.default_rng(2).normal(size=len(pairs))
    found = verification(_rounds(patients, scores), patients, seeds=1, seed=0)
    assert found is not None
    cells: dict[tuple[int, int], list[float]] = {}
    for i, j, same, score in zip(pairs.first, pairs.second, pairs.genuine, scores, strict=True):
        if not same:
            cells.setdefault((patients[i], patients[j]), []).append(score)
    areas = []
    for patient in (0, 1):
        own = scores[pairs.genuine & (patients[pairs.first] == patient)]
        areas.append(np.mean([np.mean([np.mean(score > np.array(cell)) for cell in cells.values()]) for score in own]))
    assert found.auc.value == pytest.approx(np.mean(areas), abs=1e-6)
    assert found.auc_pairs != pytest.approx(found.auc.value, abs=1e-3)


def test_rounds_are_compared_within_themselves() -> None:
    patients = np.repeat(np.arange(20), 2)
    halves = [all_pairs(patients, np.arange(20)), all_pairs(patients, np.arange(20, 40))]
    # Perfect in each round, though one round's impostors score above the other's genuine pairs.
    rounds = [Round(pairs=pairs, scores=pairs.genuine + 10.0 * place) for place, pairs in enumerate(halves)]
    found = verification(rounds, patients, seeds=1, seed=0)
    assert found is not None
    assert found.auc.value == 1.0


def test_scores_that_say_nothing_give_one_half() -> None:
    patients = np.repeat(np.arange(100), 2)
    found = verification(_rounds(patients, np.zeros(200 * 199 // 2)), patients, seeds=1, seed=0)
    assert found is not None
    assert (found.auc.value, found.auc_pairs) == (0.5, 0.5)  # every tie counts half
    assert found.rate is not None  # 19,800 impostor pairs
    assert found.rate.value == 0.0  # the threshold that lets a genuine pair in lets all impostors in


def test_ties_count_half_as_in_mann_and_whitney() -> None:
    patients = np.repeat(np.arange(30), 2)
    genuine = all_pairs(patients).genuine
    scores = np.random.default_rng(1).integers(0, 4, len(genuine)) + genuine.astype(np.float64)
    found = verification(_rounds(patients, scores), patients, seeds=1, seed=0)
    assert found is not None
    expected = stats.mannwhitneyu(scores[genuine], scores[~genuine]).statistic / (genuine.sum() * (~genuine).sum())
    assert found.auc.value == pytest.approx(expected, abs=1e-6)


def test_a_difference_is_that_of_the_same_resamples() -> None:
    patients = np.repeat(np.arange(40), 2)
    genuine = all_pairs(patients).genuine
    rng = np.random.default_rng(3)
    weak = rng.normal(size=len(genuine)) + 0.8 * genuine
    found = [
        verification(_rounds(patients, scores), patients, seeds=1, seed=0) for scores in (weak, weak + 0.7 * genuine)
    ]
    first, second = (one for one in found if one is not None)
    more = excess(second, first)
    assert more.value == pytest.approx(second.auc.value - first.auc.value)
    assert more.low is not None
    assert more.high is not None
    # The two are of the same pairs, so their difference is surer than either.
    assert first.auc.low is not None
    assert first.auc.high is not None
    assert 0.0 < more.low < more.value < more.high
    assert more.high - more.low < first.auc.high - first.auc.low
    same = excess(first, first)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


@pytest.mark.slow
def test_an_attacker_who_knows_nothing_is_rarely_told_from_guessing_where_impostors_are_few() -> None:
    patients = np.repeat(np.arange(40), 2)
    above = below = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        alike, fold = rng.integers(0, 12, 40), rng.permutation(40) % 5
        rounds = []
        for number in range(5):
            pairs = all_pairs(patients, np.flatnonzero(fold[patients] == number))
            # Some 50 impostor pairs in all: resamples of patients leave many a round without any.
            pairs = pairs.where(alike[patients[pairs.first]] == alike[patients[pairs.second]])
            rounds.append(Round(pairs=pairs, scores=rng.normal(size=len(pairs))))
        found = verification(rounds, patients, seeds=1, seed=0)
        assert found is not None
        assert found.auc.low is not None
        assert found.auc.high is not None
        above += found.auc.low > 0.5
        below += found.auc.high < 0.5
    # 2.5 % each; more than 6 of 60 would come by chance once in a thousand times.
    assert max(above, below) <= 6


def test_certainty_has_the_exact_interval_of_its_patients() -> None:
    patients = np.repeat(np.arange(20), 2)
    found = verification(_rounds(patients, all_pairs(patients).genuine * 1.0), patients, seeds=1, seed=0)
    assert found is not None
    assert (found.auc.value, found.auc.high) == (1.0, 1.0)
    assert found.auc.low == pytest.approx(0.025 ** (1 / 20))


def test_the_rate_at_few_false_positives_needs_many_impostors() -> None:
    patients = np.repeat(np.arange(60), 2)
    scores = all_pairs(patients).genuine.astype(np.float64)
    few = verification(_rounds(patients, scores), patients, seeds=1, seed=0)
    assert few is not None
    assert few.rate is None
    many = np.repeat(np.arange(80), 2)
    scores = all_pairs(many).genuine * np.random.default_rng(0).choice([0.0, 1.0], 160 * 159 // 2)
    found = verification(_rounds(many, scores), many, seeds=1, seed=0)
    assert found is not None
    assert found.rate is not None
    share = scores[all_pairs(many).genuine].mean()
    assert found.rate.value == pytest.approx(share, abs=0.03)


def test_each_round_must_have_impostors_enough_for_its_own_threshold() -> None:
    patients = np.repeat(np.arange(160), 2)
    halves = [all_pairs(patients, np.arange(160)), all_pairs(patients, np.arange(160, 320))]
    rounds = [Round(pairs=pairs, scores=pairs.genuine * 1.0) for pairs in halves]
    found = verification(rounds, patients, seeds=1, seed=0)
    assert found is not None
    assert found.rate is not None  # 12,640 impostor pairs each
    shorter = all_pairs(patients, np.arange(160, 300))
    found = verification([rounds[0], Round(pairs=shorter, scores=shorter.genuine * 1.0)], patients, seeds=1, seed=0)
    assert found is not None
    assert (found.rate, found.fewest_impostors) == (None, 9_660)


def test_nothing_to_compare_is_no_figure_and_no_number_is_an_error() -> None:
    alone = np.zeros(4, dtype=np.int64)
    assert verification(_rounds(alone, np.zeros(6)), alone, seeds=1, seed=0) is None
    patients = np.array([0, 0, 1])
    with pytest.raises(UsageError, match="finite"):
        verification(_rounds(patients, np.array([np.nan, 0.0, 0.0])), patients, seeds=1, seed=0)


def test_the_best_match_is_looked_for_among_all_others() -> None:
    patients = np.array([0, 0, 1, 1, 2])
    pairs = all_pairs(patients)
    score = {(0, 1): 0.9, (2, 3): 0.1, (2, 4): 0.8, (3, 4): 0.7}
    scores = np.array([score.get((i, j), 0.0) for i, j in zip(pairs.first, pairs.second, strict=True)])
    hits, rows, choices = hits_at_one([Round(pairs=pairs, scores=scores)], patients)
    assert rows.tolist() == [0, 1, 2, 3]  # patient 2 has nothing to be found by
    assert hits.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert choices == 4.0
