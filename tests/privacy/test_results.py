"""Records say where they are from few patients, and come back from disk as they went."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from tests.privacy.records import result, small_audit

from veilray.errors import DataError, RunError, UsageError
from veilray.privacy.formal import adjacencies, composition_of, formal_side
from veilray.privacy.intervals import over_patients
from veilray.privacy.results import AttackResult, read_audit, write_audit

FEW = "from only 29 patients, fewer than 30"


def test_a_figure_from_few_patients_says_so_itself() -> None:
    assert result(n_patients=29).notes == (FEW,)
    assert result(n_patients=29, notes=("another",)).notes == (FEW, "another")
    assert result(n_patients=30).notes == ()


def test_it_says_so_once_however_often_it_is_read() -> None:
    once = AttackResult.model_validate_json(result(n_patients=29).model_dump_json())
    assert once.notes == (FEW,)


def test_no_figure_is_infinite() -> None:
    with pytest.raises(ValidationError):
        result(value=float("inf"))


def test_an_audit_comes_back_as_it_went(tmp_path: Path) -> None:
    audit = small_audit([result(curve=((0.0, 0.0), (1.0, 1.0))), result(metric="auc_matched", n_patients=3)])
    write_audit(tmp_path, audit)
    assert read_audit(tmp_path) == audit


@pytest.mark.parametrize("content", ["{}", '{"schema_version": 2}', '{"schema_version": 1, "more": 1}'])
def test_a_damaged_audit_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "audit.json").write_text(content)
    with pytest.raises(RunError):
        read_audit(tmp_path)


def test_a_folder_without_an_audit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="veilray audit"):
        read_audit(tmp_path)


def test_patients_weigh_the_same_whatever_their_images() -> None:
    # Ten images of one patient all succeed, one of each of the two others fails.
    values = np.array([1.0] * 10 + [0.0, 0.0])
    mean, low, high = over_patients(values, ["a"] * 10 + ["b", "c"], share=True)
    assert mean == pytest.approx(1 / 3)
    assert low == 0.0
    assert high == 1.0


def test_certainty_has_an_exact_interval() -> None:
    mean, low, high = over_patients(np.ones(20), np.arange(20), share=True)
    assert (mean, high) == (1.0, 1.0)
    assert low == pytest.approx(0.8316, abs=1e-4)  # Clopper and Pearson, 20 of 20
    assert over_patients(np.zeros(20), np.arange(20), share=True)[2] == pytest.approx(1 - 0.8316, abs=1e-4)


def test_one_patient_has_no_interval_and_no_patient_is_refused() -> None:
    assert over_patients(np.array([0.5, 0.7]), ["a", "a"], share=False) == (pytest.approx(0.6), None, None)
    with pytest.raises(UsageError):
        over_patients(np.ones(3), ["a"], share=False)
    with pytest.raises(DataError):
        over_patients(np.array([np.inf, 1.0]), ["a", "b"], share=False)


def test_the_formal_side_of_a_256_pixel_image() -> None:
    distances = adjacencies(height=256, width=256, grey_step=1 / 255)
    assert list(distances.values()) == pytest.approx([256.0, 16.0, 256 / 255, 1.0, 1 / 255])
    side = formal_side({"weak": 0.1, "strong": 0.3}, height=256, width=256, grey_step=1 / 255)
    weak, strong = side.levels
    assert [one.std for one in (weak, strong)] == [0.1, 0.3]
    assert weak.lines[0].mu == pytest.approx(2560.0)
    assert strong.protected_at_1 == pytest.approx(3 * weak.protected_at_1)
    assert side.needed_std_at_1 == pytest.approx(256 * 0.1 / weak.protected_at_1)
    assert side.needed_std_at_8 < side.needed_std_at_1


def test_a_patient_with_several_images_is_as_far_apart_as_all_of_them() -> None:
    distances = adjacencies(height=64, width=64, grey_step=1 / 255, most_images=9)
    assert list(distances)[:2] == ["any image for any other", "all 9 images of one patient for any others"]
    side = formal_side({"now": 0.2}, height=64, width=64, grey_step=1 / 255, most_images=9)
    one, all_of_them = side.levels[0].lines[:2]
    assert all_of_them.mu == pytest.approx(3 * one.mu)
    assert side.needed_std_at_1 == formal_side({"now": 0.2}, height=64, width=64, grey_step=1 / 255).needed_std_at_1
    with pytest.raises(UsageError):
        adjacencies(height=64, width=64, grey_step=1 / 255, most_images=0)


def test_a_composition_speaks_of_the_least_protected() -> None:
    assert composition_of([np.inf, np.inf], source="the ledger") is None
    found = composition_of([np.inf, 0.2, 0.1, 0.3], source="the ledger")
    assert found is not None
    assert (found.acquisitions, found.least_std, found.median_std) == (3, 0.1, 0.2)
    bare = composition_of([0.0, 0.2], source="the ledger")
    assert bare is not None
    assert "1 of 2 images left without noise" in bare.notes[0]
    side = formal_side({"now": 0.3}, height=64, width=64, grey_step=1 / 255, composition=found)
    assert side.levels[-1].std == 0.1
