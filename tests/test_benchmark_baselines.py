"""The page on networks and classical methods shows the record of its script, and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "explanation" / "comparison.md"
RECORD = ROOT / "benchmarks" / "results" / "baselines.json"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "baselines_pages", raising=False)
    import baselines_pages  # type: ignore[import-not-found]

    found: ModuleType = baselines_pages
    return found


def _record() -> dict[str, Any]:
    psnr = {"mean": 31.256, "low": 30.9, "high": 31.6}
    gain = {"first": "NAFNet, width 32", "second": "BM3D", "metric": "psnr", "mean": 1.234, "low": 1.1, "high": -0.0}
    strength = {"profile": "np", "factor": 0.9}
    return {
        "hardware": {"device": "a processor", "date": "2026-01-01"},
        "split": "test",
        "images": 87,
        "patients": 60,
        "confidence": 0.95,
        "seconds_of": "the scoring",
        "levels": [
            {
                "noise": "0.1",
                "mean": "0.1",
                "methods": [
                    {"label": "BM3D", "kind": "classical", "metrics": {"psnr": psnr}, "core_seconds": 3.94},
                    {"label": "Noisy input", "kind": "noisy", "metrics": {"psnr": psnr}, "core_seconds": None},
                ],
                "differences": [{**gain, "p_holm": 0.0001, "share_won": 0.97}],
            }
        ],
        "tuning": {
            "std-0.1-mean-0.1": {
                "tuning_images": ["a", "b"],
                "methods": {
                    "bm3d": {
                        "strength": strength,
                        "at_edge_of_grid": False,
                        "grid": [{"strength": strength, "psnr": 31.5}, {"strength": strength, "psnr": 30.5}],
                    }
                },
            }
        },
    }


def test_the_tables_are_those_of_the_record(pages: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    pages.write_page(_record(), page)
    text = page.read_text(encoding="utf-8")
    for line in (
        "87 test images of 60 patients, mean 0.1",
        "Strengths were chosen on 2 validation images.",
        "| 0.1 | BM3D | 31.26 [30.90, 31.60] | 3.9 |",
        "| 0.1 | Noisy input | 31.26 [30.90, 31.60] | – |",
        "| 0.1 | NAFNet, width 32 − BM3D | +1.23 [+1.10, -0.00] | < 0.001 | 97% |",
        "| std-0.1-mean-0.1 | bm3d | profile np, factor 0.9 | 31.50 | 2 | no |",
    ):
        assert line in text
    # Written twice, it is the same page.
    pages.write_page(_record(), page)
    assert page.read_text(encoding="utf-8") == text
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="no place for the table scores"):
        pages.write_page(_record(), page)


def test_the_page_holds_the_record_or_says_that_there_is_none(pages: ModuleType, tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    if not RECORD.exists():
        assert text.count("Not on record yet") == 3
        return
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    pages.write_page(json.loads(RECORD.read_text(encoding="utf-8")), page)
    assert page.read_text(encoding="utf-8") == text
