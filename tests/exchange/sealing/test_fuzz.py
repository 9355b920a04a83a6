"""A part of benchmarks/fuzz.py: mutated bundles, manifests, tickets, cards, keys, backups and DICOM do no harm."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydicom")

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fuzz")


@pytest.mark.slow
def test_mutations_are_refused(fuzz: Any, tmp_path: Path) -> None:
    results = fuzz.tally(tmp_path, count=400, seed=99)
    assert fuzz.failures(results) == []
    assert set(results) == set(fuzz.KINDS)
    assert all(found["refused"] for found in results.values())
    assert results["DICOM"]["read"]


def test_the_tally_would_notice(fuzz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that swallowed tampering, or raised what it should not, would be counted as a failure."""
    genuine, chance = fuzz.make_genuine(tmp_path), random.Random(5)
    assert fuzz.mutate(b"abc", chance) != b"abc"
    monkeypatch.setattr(fuzz, "mutate", lambda data, chance: data)
    assert fuzz.try_case(genuine, "ciphertext", chance) == "accepted unchanged"
    assert fuzz.try_case(genuine, "key file", chance) == "accepted unchanged"
    for number in range(3):
        assert fuzz.try_case(genuine, "key file with a passphrase", random.Random(number)) == "accepted unchanged"
    assert fuzz.try_case(genuine, "backup", random.Random(3)) == "accepted unchanged"
    assert fuzz.try_case(genuine, "DICOM", random.Random(1)) == "read"
    monkeypatch.setattr(fuzz, "parse_card", lambda data, source: genuine.receiver.card)
    assert fuzz.try_case(genuine, "card", chance) == "ALTERED CONTENT ACCEPTED"
    genuine.receiver.rotate("noise")
    assert fuzz.try_case(genuine, "key file", chance) != "accepted unchanged"
    monkeypatch.setattr(fuzz, "open_bundle", lambda *_, **__: 1 / 0)
    assert fuzz.try_case(genuine, "ciphertext", chance) == "UNEXPECTED ZeroDivisionError"
    monkeypatch.setattr(fuzz, "read_mutated_dicom", lambda *_: 1 / 0)
    assert fuzz.try_case(genuine, "DICOM", chance) == "UNEXPECTED ZeroDivisionError"
