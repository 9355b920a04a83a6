"""Pseudonyms: the stated hash, different for every kind, issuer and receiver, and without a sign of the key."""

from __future__ import annotations

import hashlib
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilray.errors import UsageError
from veilray.exchange.release.pseudonyms import Pseudonyms

KEY, OTHER = b"k" * 32, b"o" * 32


def _hmac_sha256(key: bytes, message: bytes) -> bytes:
    """RFC 2104, written out."""
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + message).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).digest()


def test_it_is_the_hash_it_is_said_to_be() -> None:
    parts = [b"veilray pseudonym 1", b"patient", "Köln".encode(), b"4711"]
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert Pseudonyms(KEY).patient("Köln", "4711") == _hmac_sha256(KEY, message)[:16].hex()


@pytest.mark.slow
@given(st.text(), st.text(), st.text(), st.text())
def test_another_issuer_or_id_is_another_patient(issuer: str, patient: str, issuer2: str, patient2: str) -> None:
    names = Pseudonyms(KEY)
    assert (names.patient(issuer, patient) == names.patient(issuer2, patient2)) == (
        (issuer, patient) == (issuer2, patient2)
    )


def test_kinds_and_receivers_do_not_meet() -> None:
    found = [
        name
        for key in (KEY, OTHER)
        for name in (
            Pseudonyms(key).patient("", "1.2"),
            Pseudonyms(key).patient("1", ".2"),
            Pseudonyms(key).study("1.2"),
            Pseudonyms(key).image("1.2"),
        )
    ]
    assert all(re.fullmatch(r"[0-9a-f]{32}", name) for name in found)
    for one, other in itertools.combinations(found, 2):
        assert one != other


def test_a_patient_as_the_cohort_writes_one() -> None:
    names = Pseudonyms(KEY)
    assert names.cohort_patient("7^^^H") == names.patient("H", "7")
    assert names.cohort_patient("7") == names.patient("", "7")


def test_a_study_that_nobody_knows_has_no_name() -> None:
    """Else all images without one would be said to be of the same study."""
    assert Pseudonyms(KEY).study("") == ""


def test_the_key_does_not_show_and_is_long_enough() -> None:
    assert "k" * 8 not in repr(Pseudonyms(KEY))
    with pytest.raises(UsageError, match="32 bytes"):
        Pseudonyms(b"short")
