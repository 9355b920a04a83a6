"""Attribute inference where the image tells and where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from tests.privacy.planted import as_they_are, audit_data, recognisable

from veilray.privacy.attributes import ATTACK, AttributeInference, class_auc
from veilray.privacy.data import Budget, Labels, no_labels
from veilray.privacy.observing import Observer
from veilray.privacy.results import AttackResult, Skipped

PATIENTS = 40


def _infer(images: np.ndarray, labels: Labels) -> list[AttackResult | Skipped]:
    data = audit_data(images, np.repeat(np.arange(PATIENTS), 2), labels)
    attack = AttributeInference(Observer())
    budget = Budget(effort="quick", seconds=60)
    return attack(data, [as_they_are(data)], budget=budget, seeds=[1, 2], progress=lambda _: None)


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
    assert {one.attack for one in outcomes} == {ATTACK}


def test_what_is_unknown_or_alike_is_skipped_with_the_reason() -> None:
    count = 2 * PATIENTS
    labels = Labels(sex=("F",) * count, age=no_labels(count).age, view=("PA",) * (count - 2) + ("AP",) * 2)
    outcomes = _infer(recognisable(PATIENTS, each=2), labels)
    reasons = {one.reason.split(":")[0]: one.reason for one in outcomes if isinstance(one, Skipped)}
    assert len(reasons) == len(outcomes) == 3
    assert "the same in all" in reasons["sex"]
    assert "fewer than 10 patients" in reasons["view"]
    assert "not known" in reasons["age group"]


def test_the_area_weighs_patients_alike() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.random(60) < 0.4, rng.normal(size=60).round(1)
    expected = stats.mannwhitneyu(scores[truth], scores[~truth]).statistic / (truth.sum() * (~truth).sum())
    assert class_auc([scores], truth, np.arange(60)).value == pytest.approx(expected)
    again = np.concatenate([np.arange(60), [7, 7, 7]])  # a patient with four equal images weighs as one
    assert class_auc([scores[again]], truth[again], again).value == pytest.approx(expected)
