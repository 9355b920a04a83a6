"""The page on scaling shows what its script computes, and says of each predicted figure that it is one."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("common", "scaling_pages"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import scaling_pages  # type: ignore[import-not-found]

    found: ModuleType = scaling_pages
    return found


@pytest.mark.slow
def test_the_page_holds_the_predictions_of_this_version(pages: ModuleType) -> None:
    page = (ROOT / "docs" / "explanation" / "scaling.md").read_text(encoding="utf-8")
    predicted = pages.predictions()
    for name, text in pages._prediction_tables(predicted).items():
        assert text in page, f"{name} is not what benchmarks/scaling.py --from-record makes"
    for network in predicted["networks"].values():
        assert network["step_measured"] or "assumed, not measured" in network["step_from"]
        for link in network["links"].values():
            for cluster in link["clusters"]:
                assert cluster["epoch_s"]["best"] < cluster["epoch_s"]["middle"] < cluster["epoch_s"]["worst"]


@pytest.mark.slow
def test_every_predicted_figure_has_a_range(pages: ModuleType) -> None:
    table = pages._prediction_tables(pages.predictions())["predicted"]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert len(rows) == 2 * (1 + 2 * 4)  # networks x (one host, 64 and 512 GPUs on four links)
    for row in rows:
        for figure in row[3:]:
            assert re.fullmatch(r"[\d.,%]+ \([\d.,%]+ to [\d.,%]+\)", figure), figure


def test_a_page_without_a_place_for_a_table_is_refused(pages: ModuleType) -> None:
    begin, end = "<!-- fit: made by benchmarks/scaling.py -->", "<!-- end of fit -->"
    assert pages._with_table(f"a\n{begin}\nold\n{end}\nz", "fit", "new") == f"a\n{begin}\nnew\n{end}\nz"
    with pytest.raises(SystemExit):
        pages._with_table(f"a\n{begin}\nz", "fit", "new")
