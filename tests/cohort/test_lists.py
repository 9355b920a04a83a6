"""The CSV files that a user gives: read as meant, refused with the line that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from veilray.cohort.lists import read_patients, read_split
from veilray.errors import DataError, UsageError, VeilrayError
from veilray.images.acquisition import Acquisition


def test_columns_in_any_order_with_others_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("﻿age,patient_id,image_id\n61, p1 ,a\n70,p2,b\n61,p1,a\n", encoding="utf-8")
    listed = read_patients(path).rows
    assert {image: row.patient_id for image, row in listed.items()} == {"a": "p1", "b": "p2"}
    assert listed["a"].acquisition.age == 61


def test_what_a_table_says_of_an_exposure(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text(
        "image_id,patient_id,view_position,sex,age,spacing,burned_in,date,issuer\n"
        "a,p,PA,m,058Y,0.143,yes,2020-02-29,H\nb,p,,f,411Y,0.1x0.2,maybe,20200229,\nc,p,,,,,,,\n"
    )
    table = read_patients(path)
    a, b, c = (table.rows[name] for name in "abc")
    assert a.view == "PA"
    assert a.acquisition == Acquisition(
        sex="M",
        age=58,
        spacing=(0.143, 0.143),
        spacing_from="table",
        burned_in="YES",
        date="2020-02-29",
        issuer="H",
    )
    assert b.acquisition == Acquisition(sex="F", spacing=(0.1, 0.2), spacing_from="table", date="2020-02-29")
    assert c.acquisition == Acquisition()
    assert table.unreadable == {"age": 1, "burned_in": 1}


def test_a_table_that_contradicts_itself(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("image_id,patient_id,sex\na,p,M\na,p,F\n")
    with pytest.raises(DataError, match="line 3: an image is listed twice"):
        read_patients(path)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", DataError, "no column image_id"),
        ("Image Index,Patient ID\na,1\n", DataError, "it has Image Index, Patient ID"),
        ("image_id,split\n", DataError, "lists no image"),
        ("image_id,split\na,training\n", DataError, "line 2: 'training' is no set"),
        ("image_id,split\na,train\na,test\n", DataError, "line 3: an image is listed twice"),
        ("image_id,split\na,\n", DataError, "line 2: image_id or split is empty"),
        ("image_id,split\na\n", DataError, "line 2: image_id or split is empty"),
        ('image_id,split\n"a,train\n', DataError, "not a CSV file"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, kind: type[VeilrayError], message: str) -> None:
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(kind, match=message):
        read_split(path)


def test_a_list_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_bytes(b"image_id,split\n\xff\xfe,train\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_split(path)
    for missing in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UsageError, match="not a file"):
            read_split(missing)
