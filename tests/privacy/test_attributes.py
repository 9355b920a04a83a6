"""Attribute inference where the image tells and where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from tests.privacy.planted import as_they_are, audit_data, recognisable

from veilray.privacy.attributes import AttributeInference, Scored, class_auc
from veilray.privacy.catalogue import ATTRIBUTES
from veilray.privacy.data import Labels, no_labels
from veilray.privacy.extent import QUICK
from veilray.privacy.observing import Observer
from veilray.privacy.results import AttackResult, Skipped

PATIENTS = 40


def _infer(images: np.ndarray, labels: Labels) -> list[AttackResult | Skipped]:
    data = audit_data(images, np.repeat(np.arange(PATIENTS), 2), labels)
    attack = AttributeInference(Observer())
    return attack(data, as_they_are(data), extent=QUICK, seeds=[1, 2], progress=lambda _: None)


def _value(outcomes: list[AttackResult | Skipped], metric: str) -> AttackResult:
    found = [one for one in outcomes if isinstance(one, AttackResult) and one.metric == metric]
    assert len(found) == 1
    return found[0]


@pytest.mark.slow
def test_what_shows_is_read_and_what_does_not_is_not() -> None:
    images = recognisable(PATIENTS, each=2)
    rng = np.random.default_rng(0)
    upright = rng.random(len(images)) < 0.5
    images[upright, :12] *= 0.3
    coin = np.repeat(rng.permutation(PATIENTS) < PATIENTS // 2, 2)  # of a sex that leaves no trace
    labels = Labels(
        sex=tuple("F" if one else "M" for one in coin),
        view=tuple("PA" if one else "AP" for one in upright),
        age=tuple(70.0 if one else 30.0 for one in upright),
    )
    outcomes = _infer(images, labels)
    assert _value(outcomes, "view_auc").value > 0.97
    assert _value(outcomes, "view_accuracy").value > 0.9
    assert _value(outcomes, "age_group_accuracy").value > 0.9
    nothing = _value(outcomes, "sex_auc")
    assert abs(nothing.value - 0.5) < 0.2
    assert nothing.chance == 0.5
    assert _value(outcomes, "sex_accuracy").chance == pytest.approx(0.5)
    assert nothing.seeds == (1, 2)
    assert {one.attack for one in outcomes} == {ATTRIBUTES}


def test_what_is_unknown_or_alike_is_skipped_with_the_reason() -> None:
    count = 2 * PATIENTS
    labels = Labels(sex=("F",) * count, age=no_labels(count).age, view=("PA",) * (count - 2) + ("AP",) * 2)
    outcomes = _infer(recognisable(PATIENTS, each=2), labels)
    reasons = {one.reason.split(":")[0]: one.reason for one in outcomes if isinstance(one, Skipped)}
    assert len(reasons) == len(outcomes) == 3
    assert "the same in all" in reasons["sex"]
    assert "fewer than 10 patients" in reasons["view"]
    assert "not known" in reasons["age group"]


def _scored(scores: np.ndarray, fold_of: np.ndarray | None = None) -> list[Scored]:
    folds = np.zeros(len(scores), dtype=np.int64) if fold_of is None else fold_of
    return [Scored(said=np.stack([np.zeros(len(scores)), scores], axis=1), fold_of=folds)]


def test_the_area_weighs_patients_alike() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.random(60) < 0.4, rng.normal(size=60).round(1)
    expected = stats.mannwhitneyu(scores[truth], scores[~truth]).statistic / (truth.sum() * (~truth).sum())
    assert class_auc(_scored(scores), truth, np.arange(60), n_patients=20).value == pytest.approx(expected)
    again = np.concatenate([np.arange(60), [7, 7, 7]])  # a patient with four equal images weighs as one
    assert class_auc(_scored(scores[again]), truth[again], again, n_patients=20).value == pytest.approx(expected)


def test_images_are_compared_within_their_fold() -> None:
    truth = np.tile([False, True], 20)
    fold_of = np.repeat([0, 1], 20)
    scores = truth + 10.0 * fold_of  # the second fold's attacker says more of everything
    found = class_auc(_scored(scores, fold_of), truth, np.arange(40), n_patients=20)
    assert found.value == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 20))  # the resamples alone would say 1


@pytest.mark.slow
def test_the_smallest_class_is_what_counts() -> None:
    few = np.repeat(np.arange(PATIENTS) < 12, 2)
    count = 2 * PATIENTS
    labels = Labels(sex=tuple("F" if one else "M" for one in few), age=(None,) * count, view=(None,) * count)
    found = _value(_infer(recognisable(PATIENTS, each=2), labels), "sex_auc")
    assert found.n_patients == 12
    assert found.notes[0] == "from only 12 patients, fewer than 30"
    assert "AlexNet" in found.weakened
