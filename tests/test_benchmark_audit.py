"""The benchmark of the privacy audit counts the pairs of one patient's images from the index alone."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
INDEX = """file,patient_id,age
nih256/a.png,1,40
nih256/b.png,1,41
nih256/c.png,1,43
nih256/d.png,2,50
hannover256/e.png,1,
hannover256/f.png,1,
nih1024/g.png,1,40
"""


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("audit")


def test_pairs_are_of_one_patient_of_one_hospital(audit: ModuleType, tmp_path: Path) -> None:
    index = tmp_path / "index.csv"
    index.write_text(INDEX, encoding="utf-8")
    found = audit.pairs_of(index)
    nih, hannover = found["nih"], found["hannover"]
    assert (nih["patients"], nih["pairs"], nih["of_known_ages"], nih["of_ages_a_year_apart_at_most"]) == (2, 3, 3, 1)
    assert (hannover["patients"], hannover["pairs"], hannover["of_known_ages"]) == (1, 1, 0)
