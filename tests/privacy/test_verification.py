"""The learned attacker, its parts, and the attack as an audit calls it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats
from tests.privacy.planted import Images, anonymous, as_they_are, audit_data, recognisable

from veilray.images.phantom import chest_phantom
from veilray.privacy.catalogue import GRADIENTS, NETWORK, REIDENTIFICATION, THUMBNAILS
from veilray.privacy.data import AuditData, Labels, Rows
from veilray.privacy.embedding import PatientSpace, predict, principal_coordinates, ridge
from veilray.privacy.extent import FULL, QUICK
from veilray.privacy.fusion import Logistic
from veilray.privacy.observing import Observer, chosen_rows
from veilray.privacy.reidentification import ReIdentification
from veilray.privacy.results import AttackResult, Skipped, find_results

PATIENTS = 30
ALONE = "sex, view and age alone"
KNOWING = "verification network with sex, view and age"


def _attack(data: AuditData) -> list[AttackResult | Skipped]:
    attack = ReIdentification(Observer())
    return attack(data, as_they_are(data), extent=QUICK, seeds=[1], progress=lambda _: None)


def _value(outcomes: list[AttackResult | Skipped], metric: str, attacker: str) -> AttackResult:
    found = [one for one in find_results(outcomes, attack=REIDENTIFICATION, metric=metric) if one.attacker == attacker]
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
    alike = _value(outcomes, "auc_matched", NETWORK)
    assert alike.value > 0.9
    assert alike.matched_on == ("sex", "view", "age within 5 years")
    assert _value(outcomes, "auc_matched_with_metadata", KNOWING).above_metadata is not None
    assert _value(outcomes, "precision_at_1", NETWORK).value > 0.9
    both = _value(outcomes, "auc_with_metadata", KNOWING)
    assert both.value > 0.97
    # Two patients of the same sex within a year of age are few: metadata tell patients apart, but not matched ones.
    assert _value(outcomes, "auc", ALONE).value > 0.9
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
    assert {one.attacker for one in results} == {THUMBNAILS, GRADIENTS}
    assert all("from only 4 patients" in one.notes[0] for one in results)
    assert any(NETWORK in one.reason for one in outcomes if isinstance(one, Skipped))


def test_with_few_follow_ups_metadata_stand_beside_the_floors() -> None:
    patients = np.repeat(np.arange(4), 2)
    # Sex and age tell the four apart, whatever their images.
    labels = Labels(
        sex=("F", "F", "M", "M") * 2, age=(30.0, 31.0, 60.0, 61.0, 80.0, 81.0, 40.0, 41.0), view=(None,) * 8
    )
    outcomes = _attack(audit_data(recognisable(4, each=2), patients, labels))
    blind = _value(outcomes, "auc", "sex and age alone")
    assert blind.role == "baseline"
    assert blind.value == 1.0


def test_metadata_are_measured_again_where_the_pairs_are_others() -> None:
    patients = np.repeat(np.arange(20), 2)
    data = audit_data(recognisable(20, each=2), patients, _labels(patients))
    attack = ReIdentification(Observer())
    whole = dataclasses.replace(as_they_are(data), name="noisy", kind="noisy")
    part = dataclasses.replace(whole, name="part", rows=tuple(range(30)))
    found = {
        one.name: attack(data, one, extent=QUICK, seeds=[1], progress=lambda _: None)
        for one in (as_they_are(data), whole, part)
    }
    blind = {
        name: [one for one in outcomes if isinstance(one, AttackResult) and one.role == "baseline"]
        for name, outcomes in found.items()
    }
    assert (bool(blind["original"]), bool(blind["noisy"]), bool(blind["part"])) == (True, False, True)
    assert {one.n_images for one in blind["part"] if one.metric == "auc"} == {30}
    # The differences are there even where the baseline is not given again.
    seeing = _value(found["noisy"], "auc", NETWORK)
    alone = _value(found["original"], "auc", ALONE)
    assert seeing.above_metadata is not None
    assert seeing.above_metadata.value == pytest.approx(seeing.value - alone.value)


def test_images_are_looked_at_once_and_only_those_that_are_there() -> None:
    data = audit_data(recognisable(8, each=2), np.repeat(np.arange(8), 2))
    asked: list[int] = []

    def draw(rows: Rows, number: int) -> Images:
        asked.extend(rows.tolist())
        return data.clean(rows)

    variant = dataclasses.replace(as_they_are(data), draw=draw, rows=tuple(range(12)))
    observer = Observer()
    for _ in range(2):
        outcomes = ReIdentification(observer)(data, variant, extent=QUICK, seeds=[1], progress=lambda _: None)
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
    patients = np.concatenate([np.repeat(np.arange(200), 2), np.arange(200, 1500)])
    data = audit_data(np.zeros((len(patients), 2, 2), dtype=np.float32), patients)
    rows = chosen_rows(data, as_they_are(data), extent=QUICK)
    assert 590 <= len(rows) <= 600
    taken = np.bincount(patients[rows], minlength=1500)
    assert set(taken[:200].tolist()) == {2}  # 400 images are less than three quarters: all of them are taken
    assert len(chosen_rows(data, as_they_are(data), extent=FULL)) == len(patients)


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
