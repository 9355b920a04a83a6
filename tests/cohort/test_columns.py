"""A column of ids behaves like a list of str."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilray.cohort.columns import IdColumn


@pytest.mark.slow
@given(st.lists(st.text()))
def test_round_trip(values: list[str]) -> None:
    column = IdColumn(values)
    assert list(column) == values
    assert [column[row] for row in range(len(column))] == values


def test_rows_outside_are_refused() -> None:
    column = IdColumn(["a"])
    for row in (-1, 1):
        with pytest.raises(IndexError):
            column[row]
