"""Classical methods in a report: rows under their names, seconds of a core, and differences from models alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.report.page import Page

from veilray.evaluation.compare import compare
from veilray.report.render import to_html
from veilray.report.text import core_seconds

MakeRun = Callable[..., Path]
METHODS = ("noisy", "model", "bm3d", "bm3d-naive", "tv")
SECONDS = {"model": 0.0216, "bm3d": 3.94, "bm3d-naive": 3.91, "tv": 0.102}


def _plain(cell: str) -> str:
    return " ".join(cell.split())


@pytest.mark.slow
def test_rows_have_their_names_and_the_seconds_of_a_core(make_run: MakeRun) -> None:
    run = make_run("a", methods=METHODS, summary={"core_seconds_per_image": SECONDS})
    page = Page(to_html(compare([run]), []))
    head, *rows = page.cells["scores"]
    column = next(index for index, cell in enumerate(head) if _plain(cell).startswith("Image"))
    shown = {_plain(row[1]): _plain(row[column]) for row in rows}
    assert shown == {
        "Noisy input": "–",
        "BM3D": "3.9",
        "BM3D, naive": "3.9",
        "Total variation": "0.10",
        "U-Net, width 64": "0.022",
    }
    assert {len(row) for row in rows} == {len(head)}
    pairs = [_plain(row[1]) for row in page.cells["pairs"][1:] if "−" in row[1]]
    assert len(pairs) == 3
    assert all(pair.startswith("U-Net, width 64 − ") for pair in pairs)


@pytest.mark.slow
def test_without_classical_methods_there_is_no_such_column(make_run: MakeRun) -> None:
    run = make_run("a", summary={"core_seconds_per_image": {"model": 0.02}})
    head = Page(to_html(compare([run]), [])).cells["scores"][0]
    assert not any(_plain(cell).startswith("Image") for cell in head)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (0.00123, "0.0012"), (0.0216, "0.022"), (0.95, "0.95"), (3.94, "3.9"), (12.3, "12")],
)
def test_seconds_have_two_digits_that_count(value: float | None, text: str) -> None:
    assert core_seconds(value) == text
