"""A cohort opened: rows, groups, and refusal of everything that was altered."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from veilray.cohort.cohort import Cohort
from veilray.cohort.open import open_data
from veilray.cohort.records import CohortRecord, with_digest
from veilray.cohort.split import SPLITS
from veilray.errors import CohortError, VeilrayError

PIXELS = "pixels-16x16-uint8.npy"


def _reseal(folder: Path) -> None:
    """Make `cohort.json` fit its files again, as someone who alters a cohort on purpose would."""
    path = folder / "cohort.json"
    values = json.loads(path.read_text())
    for name in values["files"]:
        data = (folder / name).read_bytes()
        values["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    path.write_text(json.dumps(with_digest(CohortRecord.model_validate(values)).model_dump(mode="json")))


def _edit_index(folder: Path, column: str, value: str, row: int = 0) -> None:
    path = folder / "index.csv"
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[row][column] = value
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    _reseal(folder)


def test_rows_of_the_sets_are_all_rows(cohort: Cohort) -> None:
    rows = [cohort.rows(split) for split in SPLITS]
    assert sorted(np.concatenate(rows).tolist()) == list(range(60))
    for code, chosen in enumerate(rows):
        assert (cohort.split_codes[chosen] == code).all()
        assert cohort.record.images[SPLITS[code]] == len(chosen)
    assert cohort.record.patients["train"] == len({cohort.patient_id(row) for row in cohort.rows("train")})


def test_groups_hold_one_size_each_and_keep_the_order(mixed: Cohort) -> None:
    rows = np.array([11, 3, 7, 0, 5, 2])
    groups = mixed.groups(rows)
    assert sorted(np.concatenate(groups).tolist()) == sorted(rows.tolist())
    shapes = [mixed.gather(group).shape[1:] for group in groups]
    assert shapes == mixed.sizes
    for group in groups:
        places = [rows.tolist().index(row) for row in group]
        assert places == sorted(places)


def test_one_batch_may_mix_depths_but_not_sizes(mixed: Cohort) -> None:
    depths = {mixed.dtype(int(row)).name for row in mixed.groups(np.arange(12))[1]}
    assert depths == {"uint8", "uint16"}
    with pytest.raises(CohortError, match="one size"):
        mixed.gather(np.arange(12))


@pytest.mark.parametrize("rows", [[-1], [60], [], [[0]], [0.5]])
def test_rows_that_are_none(cohort: Cohort, rows: list[object]) -> None:
    with pytest.raises(CohortError, match="rows must"):
        cohort.gather(np.array(rows))


def test_verify_names_the_altered_file(cohort: Cohort) -> None:
    cohort.verify()
    with (cohort.path / PIXELS).open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    with pytest.raises(CohortError, match=PIXELS):
        Cohort.open(cohort.path).verify()


def test_an_altered_index_is_noticed_on_opening(cohort: Cohort) -> None:
    path = cohort.path / "index.csv"
    path.write_text(path.read_text().replace(",train,", ",test,", 1))
    with pytest.raises(CohortError, match=r"index\.csv was altered"):
        Cohort.open(cohort.path)


def test_an_altered_record_is_noticed_on_opening(cohort: Cohort, patched_json: Callable[..., None]) -> None:
    preprocessing = cohort.record.preprocessing.model_dump(mode="json") | {"split_seed": 1}
    patched_json(cohort.path / "cohort.json", preprocessing=preprocessing)
    with pytest.raises(CohortError, match="digest"):
        Cohort.open(cohort.path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("row", "60"),
        ("row", "-1"),
        ("row", "99999999999"),
        ("row", "x"),
        ("pixels", "pixels-9x9-uint8.npy"),
        ("split", "training"),
        ("image_id", "00000000_001"),
    ],
)
def test_an_index_that_points_nowhere(cohort: Cohort, column: str, value: str) -> None:
    _edit_index(cohort.path, column, value)
    with pytest.raises(CohortError, match=r"index\.csv"):
        Cohort.open(cohort.path)


@pytest.mark.parametrize("text", ["", "image_id\n", "image_id,split\na\n", '"' + "x" * 200_000 + "\n", "\0\0\0"])
def test_an_index_that_is_none(cohort: Cohort, text: str) -> None:
    (cohort.path / "index.csv").write_text(text)
    _reseal(cohort.path)
    with pytest.raises(CohortError, match=r"index\.csv"):
        Cohort.open(cohort.path)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 3},
        {"extra": 1},
        {"images": {"training": 3}},
        {"files": {"../../secret.npy": {"sha256": "0" * 64, "size": 1}}},
        {"files": {}},
    ],
)
def test_a_record_that_does_not_fit(
    cohort: Cohort, patched_json: Callable[..., None], change: dict[str, object]
) -> None:
    patched_json(cohort.path / "cohort.json", **change)
    with pytest.raises(CohortError):
        Cohort.open(cohort.path)


def test_a_record_that_is_no_json(cohort: Cohort) -> None:
    (cohort.path / "cohort.json").write_bytes(b"\xff{")
    with pytest.raises(CohortError, match="not valid JSON"):
        Cohort.open(cohort.path)


def test_pixels_cut_short_are_noticed_on_opening(cohort: Cohort) -> None:
    with (cohort.path / PIXELS).open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(CohortError, match="bytes instead of"):
        Cohort.open(cohort.path)


def test_open_data_tells_what_a_folder_is(cohort: Cohort, tmp_path: Path) -> None:
    assert isinstance(open_data(cohort.path), Cohort)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(VeilrayError, match="neither a cohort nor a release"):
            open_data(folder)
    with pytest.raises(CohortError, match="not a cohort"):
        Cohort.open(tmp_path)
