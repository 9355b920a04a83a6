"""keygen, keys and ledger on the command line."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import typer
from tests.command_line import done, veilray

from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.ledger.ledger import Image, Release


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    done("keygen", "--out", tmp_path / "keys", "--name", "hospital")
    return tmp_path / "keys"


@pytest.fixture
def centre(tmp_path: Path) -> Path:
    """The public card of another site, as it is sent."""
    done("keygen", "--out", tmp_path / "centre", "--name", "centre", "--role", "site-two")
    done("keys", "card", tmp_path / "centre", "--out", tmp_path / "centre.json")
    return tmp_path / "centre.json"


def _fingerprint(card: Path) -> str:
    return str(json.loads(card.read_text())["fingerprint"])


def test_cards_are_exchanged_and_shown(keys: Path, centre: Path) -> None:
    fingerprint = KeyFolder.open(centre.with_suffix("")).card.spoken_fingerprint
    said = done("keys", "pin", keys, centre, "--fingerprint", fingerprint.upper()).out
    assert fingerprint in said
    shown = done("keys", "show", keys).out
    assert f"pinned: centre, fingerprint {fingerprint}" in shown
    assert "noise-1.key" in shown
    done("keys", "unpin", keys, "centre")
    assert "centre" not in done("keys", "show", keys).out


def test_a_wrong_fingerprint_pins_nothing(keys: Path, centre: Path) -> None:
    refused = veilray("keys", "pin", keys, centre, "--fingerprint", "0" * 64)
    assert (refused.status, len(refused.lines)) == (4, 1)
    asked = veilray("keys", "pin", keys, centre)
    assert asked.status == 2
    assert "--fingerprint" in asked.err
    assert KeyFolder.open(keys).peers() == []


@pytest.mark.parametrize("yes", [True, False])
def test_at_a_terminal_the_fingerprint_is_compared_by_a_person(
    keys: Path, centre: Path, yes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", lambda _: yes)
    assert veilray("keys", "pin", keys, centre).status == (0 if yes else 4)
    assert len(KeyFolder.open(keys).peers()) == yes


def test_another_card_needs_replace(keys: Path, centre: Path, tmp_path: Path) -> None:
    done("keys", "pin", keys, centre, "--fingerprint", _fingerprint(centre))
    done("keys", "rotate", tmp_path / "centre", "signing", "--yes")
    new = tmp_path / "new.json"
    done("keys", "card", tmp_path / "centre", "--out", new)
    pin = ("keys", "pin", keys, new, "--fingerprint", _fingerprint(new))
    assert veilray(*pin).status == 4
    done(*pin, "--replace")
    assert veilray("keys", "card", keys, "--out", new).status == 2  # a file is not written over


@pytest.mark.parametrize("kind", ["signing", "receiving", "noise", "pseudonyms"])
def test_rotation_says_what_it_means_and_asks(keys: Path, kind: str) -> None:
    asked = veilray("keys", "rotate", keys, kind)
    assert asked.status == 2
    assert "--yes" in asked.err
    assert not (keys / f"{kind}-2.key").exists()
    said = done("keys", "rotate", keys, kind, "--yes").out
    assert f"{kind}-2.key" in said
    assert len(said.splitlines()[0]) > 100


@pytest.mark.slow
def test_the_wrong_passphrase_and_none_are_refused(tmp_path: Path) -> None:
    phrase, wrong = tmp_path / "phrase", tmp_path / "wrong"
    for file in (phrase, wrong):
        file.write_text(f"the {file.name}\n")
        file.chmod(0o600)
    keys = tmp_path / "keys"
    done("keygen", "--out", keys, "--name", "hospital", "--role", "site-two", "--passphrase-file", phrase)
    assert "with a passphrase" in done("keys", "show", keys).out
    rotate = ("keys", "rotate", keys, "signing", "--yes")
    assert "--passphrase-file" in veilray(*rotate).err
    refused = veilray(*rotate, "--passphrase-file", wrong)
    assert refused.status == 4
    assert "the wrong" not in refused.err
    phrase.chmod(0o644)
    assert veilray(*rotate, "--passphrase-file", phrase).status == 4
    phrase.chmod(0o600)
    phrase.write_bytes(b"\xff\xfe\n")
    assert veilray(*rotate, "--passphrase-file", phrase).status == 2


@pytest.mark.slow
def test_passphrase_backup_and_restore(keys: Path, tmp_path: Path) -> None:
    phrase = tmp_path / "phrase"
    phrase.write_text("a phrase\n")
    phrase.chmod(0o600)
    backup = tmp_path / "backup.age"
    done("keys", "backup", keys, "--out", backup, "--passphrase-file", phrase)
    said = done("keys", "restore", backup, "--out", tmp_path / "again", "--passphrase-file", phrase).out
    assert "do not release those images again" in said
    assert KeyFolder.open(tmp_path / "again").noise_secret() == KeyFolder.open(keys).noise_secret()
    assert veilray("keys", "passphrase", keys, "--new-passphrase-file", phrase).status == 2


def test_no_command_takes_a_passphrase_itself() -> None:
    for words in (["keygen"], *(["keys", sub] for sub in ("rotate", "passphrase", "backup", "restore"))):
        helped = done(*words, "--help").out
        assert "--passphrase-file" in helped
        assert "--passphrase " not in helped


@pytest.mark.slow
def test_the_ledger_is_listed_and_settled(keys: Path, centre: Path) -> None:
    done("keys", "pin", keys, centre, "--fingerprint", _fingerprint(centre))
    digest = hashlib.sha256(b"image").digest()
    image = Image(sop_uid="1.2", digest=digest, likeness=digest, geometry="native", std=0.2)
    release = Release(release_id="abc", receivers=(_fingerprint(centre),), mode="noisy", source="entropy", mean=0.1)
    with KeyFolder.open(keys).ledger() as ledger:
        ledger.reserve(release, [image])
    listed = done("ledger", "list", keys).out
    assert "abc reserved: noisy, 1 images, entropy noise from std 0.2, centre" in listed
    assert "veilray ledger settle" in listed
    settle = ("ledger", "settle", keys, "abc", "--name", "B. Clerk", "--reason", "never written")
    assert veilray(*settle).status == 2  # whether it left must be said
    done(*settle, "--not-released")
    assert veilray(*settle, "--released").status == 2
    events = done("ledger", "list", keys, "--events").out
    assert "settled as not released: B. Clerk, never written" in events
    assert veilray("ledger", "list", centre.with_suffix("")).status == 2
    (keys / "ledger.db").unlink()
    assert veilray("ledger", "list", keys).status == 3
