"""A part of benchmarks/fuzz.py: mutated bundles, manifests, tickets and cards are refused, and nothing else happens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from benchmarks.fuzz import KINDS, failures, make_genuine, mutate, tally, try_case


@pytest.mark.slow
def test_mutations_are_refused(tmp_path: Path) -> None:
    results = tally(tmp_path, count=300, seed=99)
    assert failures(results) == []
    assert set(results) == set(KINDS)
    assert all(found["refused"] for found in results.values())


def test_the_tally_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that swallowed tampering, or raised what it should not, would be counted as a failure."""
    genuine, chance = make_genuine(tmp_path), random.Random(5)
    assert mutate(b"abc", chance) != b"abc"
    monkeypatch.setattr("benchmarks.fuzz.mutate", lambda data, chance: data)
    assert try_case(genuine, "ciphertext", chance) == "accepted unchanged"
    monkeypatch.setattr("benchmarks.fuzz.parse_card", lambda data, source: genuine.receiver.card)
    assert try_case(genuine, "card", chance) == "ALTERED CONTENT ACCEPTED"
    monkeypatch.setattr("benchmarks.fuzz.open_bundle", lambda *_, **__: 1 / 0)
    assert try_case(genuine, "ciphertext", chance) == "UNEXPECTED ZeroDivisionError"
