"""De-identification: nothing but the allow-list and no rare combination, on tables made by hand and at random."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilray.exchange.release.deidentify import FIELDS, Coded, Facts, Field, age_band, deidentify

ALL: tuple[Field, ...] = FIELDS


def _facts(patient: int | str, **more: object) -> Facts:
    given: dict[str, object] = {"view": "PA", "sex": "F", "age": 65.0, "spacing": (0.143, 0.143), "matrix": "256x256"}
    return Facts(patient=str(patient), **{**given, **more})  # type: ignore[arg-type]


def test_what_enough_patients_share_stays() -> None:
    found = deidentify([_facts(patient) for patient in range(5)], fields=ALL)
    assert found.coded == [Coded(view="PA", sex="F", age="60-69", spacing="0.14 x 0.14")] * 5
    assert found.notes == []


def test_four_patients_are_too_few_and_images_of_one_are_one() -> None:
    found = deidentify([_facts(patient) for patient in (0, 1, 2, 3, 3, 3)], fields=ALL)
    assert found.coded == [Coded()] * 6
    assert "view is left out of 6 images: fewer than 5 patients share the combination." in found.notes


def test_only_what_is_asked_for_leaves() -> None:
    images = [_facts(patient, date="2020-01-01") for patient in range(5)]
    assert deidentify(images).coded == [Coded(view="PA", spacing="0.14 x 0.14")] * 5
    assert deidentify(images, fields=()).coded == [Coded()] * 5


def test_a_rare_spacing_goes_first_and_as_few_as_needed_keep_it_company() -> None:
    images = [_facts(patient) for patient in range(9)] + [_facts(9, spacing=(0.2, 0.2))]
    found = deidentify(images, fields=ALL)
    # Alone without a spacing it would stand out by that.
    assert sum(code.spacing == "" for code in found.coded if code) == 5
    assert found.coded[9] == Coded(view="PA", sex="F", age="60-69")
    assert found.notes == ["spacing is left out of 5 images: fewer than 5 patients share the combination."]


def test_a_rare_device_of_five_joins_no_one() -> None:
    images = [_facts(patient, spacing=(0.1 + 0.1 * (patient % 2),) * 2) for patient in range(10)]
    assert {code.spacing for code in deidentify(images).coded if code} == {"0.10 x 0.10", "0.20 x 0.20"}


def test_rare_ages_meet_in_twenty_years() -> None:
    images = [_facts(patient, age=60.0 if patient < 3 else 72.0) for patient in range(6)]
    found = deidentify(images, fields=ALL)
    assert [code.age for code in found.coded if code] == ["60-79"] * 6
    assert "age is given in bands of 20 years in 6 images: fewer than 5 patients share the combination." in found.notes


@pytest.mark.parametrize(
    ("age", "decade", "twenty"),
    [(0, "0-9", "0-19"), (9.9, "0-9", "0-19"), (89.9, "80-89", "80+"), (90, "90+", "80+"), (117, "90+", "80+")],
)
def test_bands(age: float, decade: str, twenty: str) -> None:
    assert (age_band(age), age_band(age, years=20)) == (decade, twenty)


def test_all_images_of_a_patient_are_treated_alike() -> None:
    """What one image of a patient hides, another one under the same pseudonym must not tell."""
    images = [_facts(patient) for patient in range(10)] + [_facts(0, view="LL")]
    found = deidentify(images, fields=ALL)
    assert found.coded[0] == found.coded[10] == Coded()
    assert found.coded.count(Coded(view="PA", sex="F", age="60-69", spacing="0.14 x 0.14")) == 5


def test_free_text_and_unknown_codes_never_leave() -> None:
    images = [_facts(patient, view="PA John Smith") for patient in range(5)]
    assert {code.view for code in deidentify(images).coded if code} == {""}


def test_days_count_from_the_first_image_and_are_no_dates() -> None:
    days = ["2020-02-28", "2020-03-01", "", "2020-02-28"]
    images = [_facts(0, date=day) for day in days]
    found = deidentify(images, fields=("days",), k=1)
    assert [code.days for code in found.coded if code] == ["0", "2", "", "0"]


def test_the_study_leaves_only_if_it_is_asked_for_and_counts_in_no_combination() -> None:
    images = [_facts(patient, study=f"{patient:032x}") for patient in range(5)]
    assert {code.study for code in deidentify(images).coded if code} == {""}
    found = deidentify(images, fields=("view", "study"))
    assert [(code.view, code.study) for code in found.coded if code] == [("PA", f"{n:032x}") for n in range(5)]
    assert found.notes == []


def test_rare_sizes_stay_at_home_unless_they_are_wanted() -> None:
    images = [_facts(patient) for patient in range(6)] + [_facts(6, matrix="300x200")]
    found = deidentify(images)
    assert found.coded[6] is None
    assert any("1 images stay here" in note for note in found.notes)
    assert deidentify(images, keep_rare_sizes=True).coded[6] == Coded()
    assert deidentify(images[:2]).coded == [Coded()] * 2


_IMAGES = st.lists(
    st.builds(
        _facts,
        st.integers(0, 30),
        view=st.sampled_from(["PA", "AP", "LL", ""]),
        sex=st.sampled_from(["M", "F", ""]),
        age=st.none() | st.floats(0, 110),
        spacing=st.none() | st.sampled_from([(0.1, 0.1), (0.143, 0.2)]),
        matrix=st.sampled_from(["a", "b"]),
    ),
    min_size=1,
    max_size=60,
)


@pytest.mark.slow
@settings(max_examples=150)
@given(_IMAGES, st.sets(st.sampled_from(FIELDS)), st.integers(2, 6), st.booleans(), st.randoms())
def test_no_combination_is_rarer_than_promised(
    images: list[Facts], asked: set[Field], k: int, keep: bool, random: object
) -> None:
    wanted = sorted(asked)
    found = deidentify(images, fields=wanted, k=k, keep_rare_sizes=keep).coded
    members: defaultdict[tuple[str, Coded], set[str]] = defaultdict(set)
    for image, code in zip(images, found, strict=True):
        if code is not None:
            members[image.matrix, code].add(image.patient)
            assert not any(getattr(code, field.name) for field in fields(Coded) if field.name not in wanted)
    for (matrix, code), patients in members.items():
        alone = all(at != matrix or other == code for at, other in members)
        assert len(patients) >= k or (code == Coded() and alone)
    order = list(range(len(images)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = deidentify([images[i] for i in order], fields=wanted, k=k, keep_rare_sizes=keep).coded
    assert shuffled == [found[i] for i in order]
