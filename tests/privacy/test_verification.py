"""The learned attacker, its parts, and the attack as an audit calls it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats
from tests.privacy.planted import Images, anonymous, as_they_are, audit_data, recognisable

from veilray.images.phantom import chest_phantom
from veilray.privacy.data import AuditData, Budget, Labels, Rows
from veilray.privacy.embedding import PatientSpace, predict, principal_coordinates, ridge
from veilray.privacy.fusion import Logistic
from veilray.privacy.observing import Observer, chosen_rows
from veilray.privacy.reidentification import ATTACK, METADATA, ReIdentification
from veilray.privacy.results import AttackResult, Skipped, find_results
from veilray.privacy.verification import NETWORK, NETWORK_AND_METADATA

PATIENTS = 30
BUDGET = Budget(effort="quick", seconds=60)


def _attack(data: AuditData) -> list[AttackResult | Skipped]:
    attack = ReIdentification(Observer())
    return attack(data, [as_they_are(data)], budget=BUDGET, seeds=[1], progress=lambda _: None)


def _value(outcomes: list[AttackResult | Skipped], metric: str, attacker: str) -> AttackResult:
    found = [one for one in find_results(outcomes, attack=ATTACK, metric=metric) if one.attacker == attacker]
    assert len(found) == 1
    return found[0]


def _labels(patients: np.ndarray, *, seed: int = 0) -> Labels:
    rng = np.random.default_rng(seed)
    sex, age = rng.choice(["F", "M"], patients.max() + 1), rng.uniform(20, 90, patients.max() + 1)
    view = rng.choice(["AP", "PA"], len(patients))
    return Labels(sex=tuple(sex[patients].tolist()), age=tuple(age[patients].tolist()), view=tuple(view.tolist()))


@pytest.mark.slow
def test_who_can_be_recognised_is() -> None:
    patients = np.repeat(np.arange(PATIENTS), 3)
    outcomes = _attack(audit_data(recognisable(PATIENTS, each=3), patients, _labels(patients)))
    whole = _value(outcomes, "auc", NETWORK)
    assert whole.value > 0.97
    assert whole.curve is not None
    assert whole.curve[-1] == (1.0, 1.0)
    assert (whole.n_images, whole.n_patients, whole.seeds) == (90, PATIENTS, (1,))
    assert _value(outcomes, "auc_matched", NETWORK).value > 0.9
    assert _value(outcomes, "precision_at_1", NETWORK).value > 0.9
    both = _value(outcomes, "auc_with_metadata", NETWORK_AND_METADATA)
    assert both.value > 0.97
    # Two patients of the same sex within a year of age are few: metadata tell patients apart, but not matched ones.
    assert _value(outcomes, "auc", METADATA).value > 0.9
    assert any("1e-3" in one.reason for one in outcomes if isinstance(one, Skipped))


@pytest.mark.slow
def test_who_cannot_be_recognised_is_not() -> None:
    patients = np.repeat(np.arange(20), 3)
    outcomes = _attack(audit_data(anonymous(20, each=3), patients))
    whole = _value(outcomes, "auc", NETWORK)
    assert whole.low is not None
    assert whole.high is not None
    assert whole.low < 0.5 < whole.high + 0.05
    assert abs(whole.value - 0.5) < 0.15
    assert _value(outcomes, "precision_at_1", NETWORK).value < 0.3
    assert any("neither sex nor view nor age" in one.reason for one in outcomes if isinstance(one, Skipped))


@pytest.mark.parametrize(
    ("patients", "reason"),
    [(np.zeros(6, dtype=np.int64), "one patient only"), (np.arange(6), "no patient has two images")],
)
def test_what_cannot_be_attacked_is_skipped_with_the_reason(patients: np.ndarray, reason: str) -> None:
    outcomes = _attack(audit_data(recognisable(6, each=1), patients))
    assert len(outcomes) == 1
    assert isinstance(outcomes[0], Skipped)
    assert reason in outcomes[0].reason


def test_with_few_follow_ups_only_the_floors_attack() -> None:
    outcomes = _attack(audit_data(recognisable(4, each=2), np.repeat(np.arange(4), 2)))
    results = [one for one in outcomes if isinstance(one, AttackResult)]
    assert {one.attacker for one in results} == {"correlation of thumbnails", "histograms of gradients"}
    assert all("from only 4 patients" in one.notes[0] for one in results)
    assert any(NETWORK in one.reason for one in outcomes if isinstance(one, Skipped))


def test_images_are_looked_at_once_and_only_those_that_are_there() -> None:
    data = audit_data(recognisable(8, each=2), np.repeat(np.arange(8), 2))
    asked: list[int] = []

    def draw(rows: Rows, number: int) -> Images:
        asked.extend(rows.tolist())
        return data.clean(rows)

    variant = dataclasses.replace(as_they_are(data), draw=draw, rows=tuple(range(12)))
    observer = Observer()
    for _ in range(2):
        outcomes = ReIdentification(observer)(data, [variant], budget=BUDGET, seeds=[1], progress=lambda _: None)
    assert asked == list(range(12))
    assert {one.n_images for one in outcomes if isinstance(one, AttackResult)} == {12}


@pytest.mark.slow
def test_phantoms_are_recognised_in_their_follow_ups() -> None:
    # Pose, breath, exposure and findings change; the anatomy stays.
    images = [chest_phantom(patient=p, follow_up=k, seed=1, size=48) for p in range(PATIENTS) for k in range(3)]
    outcomes = _attack(audit_data(np.stack(images), np.repeat(np.arange(PATIENTS), 3)))
    whole = _value(outcomes, "auc", NETWORK)
    assert whole.low is not None
    assert whole.low > 0.6


def test_a_large_cohort_is_sampled_by_whole_patients() -> None:
    patients = np.concatenate([np.repeat(np.arange(300), 2), np.arange(300, 1500)])
    data = audit_data(np.zeros((len(patients), 2, 2), dtype=np.float32), patients)
    rows = chosen_rows(data, as_they_are(data), effort="quick")
    assert 990 <= len(rows) <= 1000
    taken = np.bincount(patients[rows], minlength=1500)
    assert set(taken[:300].tolist()) == {2}  # 600 images are less than three quarters: all of them are taken
    assert len(chosen_rows(data, as_they_are(data), effort="full")) == len(patients)


def test_principal_coordinates_are_those_of_the_training_images() -> None:
    values = np.random.default_rng(0).normal(size=(30, 6)) * np.arange(1, 7)
    train = np.arange(20)
    found = principal_coordinates(values @ values.T, train, components=4)
    centred = values - values[train].mean(axis=0)
    _, scale, axes = np.linalg.svd(centred[train], full_matrices=False)
    expected = centred @ axes[:4].T / scale[:4] * np.sqrt(20)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-8)


def test_directions_count_as_in_the_likelihood_ratio_of_two_normal_distributions() -> None:
    space = PatientSpace(axes=stats.ortho_group.rvs(3, random_state=2), correlation=np.array([0.9, 0.5, 0.0]))
    weights = []
    for place, r in enumerate(space.correlation):
        together = stats.multivariate_normal([0, 0], [[1, r], [r, 1]])
        # The logarithm is a quadratic form: the mixed difference of four of its values is the product's weight.
        weights.append((together.logpdf([1, 1]) - together.logpdf([1, -1])) / 2)
        assert space.axes[:, place] @ space.axes[:, place] == pytest.approx(1.0)
    points = np.random.default_rng(1).normal(size=(2, 3))
    first, second = (points @ space.axes) * np.sqrt(weights)
    expected = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert space.cosines(points)[0, 1] == pytest.approx(expected)


def test_the_patient_space_finds_the_directions_that_stay() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(200), 2)
    lasting = np.sqrt([0.9, 0.6, 0.0])
    points = rng.normal(size=(200, 3))[patients] * lasting + rng.normal(size=(400, 3)) * np.sqrt(1 - lasting**2)
    space = PatientSpace.fit(points, patients, shrinkage=0.0)
    np.testing.assert_allclose(space.correlation, [0.9, 0.6, 0.0], atol=0.12)
    np.testing.assert_allclose(np.abs(space.axes), np.eye(3), atol=0.3)


def test_ridge_is_least_squares_without_a_penalty() -> None:
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    design = np.concatenate([np.ones((50, 1)), inputs], axis=1)
    expected = np.linalg.lstsq(design, targets, rcond=None)[0]
    np.testing.assert_allclose(ridge(inputs, targets, penalty=0.0), expected, atol=1e-10)
    np.testing.assert_allclose(predict(expected, inputs), design @ expected)


def test_the_fusion_recovers_known_log_odds_and_never_turns_an_input_round() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(40_000) < 0.5
    # Two normal classes a distance d apart in deviations s: log odds rise by d / s^2 an input.
    inputs = np.stack([truth + rng.normal(size=len(truth)), -0.5 * truth + rng.normal(size=len(truth))], axis=1)
    fitted = Logistic.fit(inputs, truth, np.ones(len(truth)), penalty=0.0)
    slopes = fitted.slopes / fitted.scale
    assert slopes == pytest.approx([1.0, 0.0], abs=0.05)
    assert fitted(np.array([[0.5, 0.0]]))[0] == pytest.approx(0.0, abs=0.05)
