"""Public cards: whole or refused; pinned once and replaced only on purpose."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.exchange.keys.test_keys import mangled

from veilray.errors import DataError, RefusedError, UsageError
from veilray.exchange.keys.card import PublicCard, card_from_json, make_card, parse_card, read_card
from veilray.exchange.keys.folder import KeyFolder

RECIPIENT = "age1jnrth98vedz28hdx3kyh6pl290m9q6n5hlt5sy734pnawtj4vvdsrk2psd"
CARD = make_card(name="centre", signing_key=Ed25519PrivateKey.from_private_bytes(b"k" * 32), age_recipient=RECIPIENT)


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    return KeyFolder.create(tmp_path / "keys", name="hospital", role="site-two")


def _other(name: str = "centre") -> PublicCard:
    return make_card(name=name, signing_key=Ed25519PrivateKey.generate(), age_recipient=RECIPIENT)


def test_a_card_comes_back_from_its_text(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(CARD.to_text())
    assert read_card(tmp_path / "card.json") == CARD
    both = f"{CARD.signing_key}\n{RECIPIENT}\n"
    assert CARD.fingerprint == hashlib.sha256(both.encode()).hexdigest()
    assert CARD.spoken_fingerprint.replace(" ", "") == CARD.fingerprint


@settings(max_examples=400)
@given(text=mangled(CARD.to_text().encode()))
def test_a_mangled_card_is_refused_or_says_the_same(text: bytes) -> None:
    told = "card.json"
    try:
        read = parse_card(text, source="card.json")
    except DataError as error:
        told = str(error)
    else:
        assert read == CARD
    assert "card.json" in told
    assert "\n" not in told


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=200)
@given(field=st.sampled_from([*CARD.to_json(), "more"]), value=json_values)
def test_a_card_with_another_field_is_refused(field: str, value: object) -> None:
    changed = {**CARD.to_json(), field: value}
    if value == CARD.to_json().get(field, ...):
        return
    with pytest.raises(DataError):
        card_from_json(changed, source="card.json")


def test_a_card_cannot_be_put_together_of_two(tmp_path: Path) -> None:
    other = _other("other").to_json()
    for field in ("name", "signing_key", "signature"):
        with pytest.raises(DataError, match="altered"):
            card_from_json({**CARD.to_json(), field: other[field]}, source="card.json")
    text = json.dumps({**CARD.to_json(), "name": "centrE"})
    with pytest.raises(DataError, match="altered"):
        parse_card(text, source="card.json")


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "a b", "a\n", "é", "a" * 64, "-a", ".a", "a\0"])
def test_a_name_that_is_no_file_name_names_no_site(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot name a site"):
        KeyFolder.create(tmp_path / "keys", name=name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_card_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match="missing"):
            read_card(path)


def test_pinned_cards_are_found_by_name_and_fingerprint(keys: KeyFolder) -> None:
    keys.pin(CARD)
    keys.pin(CARD)
    found = KeyFolder.open(keys.path)
    assert found.peer("centre") == found.peer(CARD.fingerprint) == CARD
    assert found.peers() == [CARD]
    with pytest.raises(RefusedError, match="pinned: centre"):
        keys.peer("nobody")


def test_another_card_under_a_known_name_is_refused_unless_replaced(keys: KeyFolder) -> None:
    keys.pin(CARD)
    for name in ("centre", "Centre"):
        with pytest.raises(RefusedError, match="pinned already"):
            keys.pin(_other(name))
    assert keys.peers() == [CARD]
    new = _other("Centre")
    keys.pin(new, replace=True)
    assert keys.peers() == [new]


def test_a_partner_keeps_its_id_through_new_cards_and_loses_it_when_unpinned(keys: KeyFolder) -> None:
    cards = [_other(), _other("Centre"), _other()]
    keys.pin(_other("another"))
    for card in cards:
        keys.pin(card, replace=True)
        assert keys.receiver_id(card) == cards[0].fingerprint
    assert keys.fingerprints_of(cards[2]) == [card.fingerprint for card in reversed(cards)]
    keys.unpin("centre")
    keys.pin(cards[2])  # it was the wrong one to unpin
    assert keys.receiver_id(cards[2]) == cards[0].fingerprint
    keys.unpin("centre")
    new = _other()
    keys.pin(new)  # somebody else may have the name now
    assert keys.receiver_id(new) == new.fingerprint
    assert keys.receiver_ids("centre") == [new.fingerprint, *(card.fingerprint for card in reversed(cards))]
    keys.unpin("centre")
    assert keys.receiver_ids("centre") == [new.fingerprint, *(card.fingerprint for card in reversed(cards))]
    with pytest.raises(RefusedError, match="no card of nobody"):
        keys.receiver_ids("nobody")


def test_keys_have_one_name(keys: KeyFolder) -> None:
    keys.pin(CARD)
    same = make_card(name="alias", signing_key=Ed25519PrivateKey.from_private_bytes(b"k" * 32), age_recipient=RECIPIENT)
    with pytest.raises(RefusedError, match="under the name centre"):
        keys.pin(same, replace=True)


def test_a_site_does_not_pin_itself(keys: KeyFolder) -> None:
    with pytest.raises(UsageError, match="the other site"):
        keys.pin(keys.card)


def test_an_unpinned_card_is_trusted_no_more(keys: KeyFolder) -> None:
    keys.pin(CARD)
    assert keys.unpin("centre") == CARD
    assert keys.peers() == []
    with pytest.raises(RefusedError, match="nobody yet"):
        keys.unpin("centre")


def test_a_pinned_file_that_was_renamed_or_opened_is_refused(keys: KeyFolder) -> None:
    keys.pin(CARD)
    file = keys.path / "peers" / "centre.json"
    file.chmod(0o644)
    with pytest.raises(RefusedError, match="chmod"):
        keys.peers()
    file.chmod(0o600)
    file.rename(file.with_name("partner.json"))
    with pytest.raises(DataError, match="holds the card of centre"):
        keys.peer("partner")
