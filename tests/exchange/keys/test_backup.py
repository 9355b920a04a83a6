"""A backup holds all that a key folder is, opens with age's own format, and restores whole or not at all."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
from tests.exchange.keys.test_cards import CARD

from veilray.errors import DataError, RefusedError, UsageError
from veilray.exchange.keys.backup import restore_backup, write_backup
from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.keys.secret import Secret
from veilray.exchange.ledger.ledger import Image, Release

PHRASE = Secret(b"a phrase of its own")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_all_of_a_folder_comes_back(tmp_path: Path) -> None:
    keys = KeyFolder.create(tmp_path / "keys", name="hospital")
    keys.pin(CARD)
    keys.rotate("pseudonyms")
    keys.rotate("receiving")
    digest = hashlib.sha256(b"image").digest()
    with keys.ledger() as ledger:
        release = Release(release_id="r", receivers=(), mode="noisy", source="entropy", mean=0.1)
        ledger.reserve(release, [Image(sop_uid="", digest=digest, likeness=digest, geometry="native", std=0.1)])
        (keys.path / "stray").write_text("not taken")
        write_backup(keys, tmp_path / "backup.age", passphrase=PHRASE)  # while the ledger is open
    (keys.path / "stray").unlink()
    assert (tmp_path / "backup.age").stat().st_mode & 0o777 == 0o600
    restored = restore_backup(tmp_path / "backup.age", tmp_path / "again", passphrase=PHRASE)
    assert _contents(restored.path) == _contents(keys.path)
    assert restored.signing_key().private_bytes_raw() == keys.signing_key().private_bytes_raw()
    assert restored.peers() == [CARD]
    assert [former.why for former in restored.former_cards()] == ["own"]
    with restored.ledger() as ledger:
        assert [line.status for line in ledger.releases()] == ["reserved"]
    for path in [restored.path, *restored.path.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def _archive(members: dict[str, bytes]) -> bytes:
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return room.getvalue()


@pytest.fixture
def site(tmp_path: Path) -> KeyFolder:
    return KeyFolder.create(tmp_path / "keys", name="centre", role="site-two")


@pytest.mark.slow  # scrypt takes its second each time
def test_another_passphrase_or_one_altered_bit_restores_nothing(site: KeyFolder, tmp_path: Path) -> None:
    good, out = tmp_path / "good.age", tmp_path / "out"
    write_backup(site, good, passphrase=PHRASE)
    whole = good.read_bytes()
    with pytest.raises(RefusedError, match="wrong"):
        restore_backup(good, out, passphrase=Secret(b"guess"))
    good.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    with pytest.raises(RefusedError, match="altered"):
        restore_backup(good, out, passphrase=PHRASE)
    assert {path.name for path in tmp_path.iterdir()} == {"keys", "good.age"}


def test_nothing_is_written_over(site: KeyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").write_bytes(b"x")
    with pytest.raises(UsageError, match="already exists"):
        write_backup(site, tmp_path / "there", passphrase=PHRASE)
    monkeypatch.setattr("veilray.exchange.keys.backup.decrypt_with", lambda *_, **__: b"")
    with pytest.raises(UsageError, match="already exists"):
        restore_backup(tmp_path / "there", site.path, passphrase=PHRASE)


@pytest.mark.parametrize(
    "members",
    [
        *({name: b"x"} for name in ("../outside.key", "/outside.key", "peers/../../outside.json", "more.txt", "a/")),
        {"noise-1.key": b"x"},
        {"keys.json": b"{}"},
        {},
    ],
)
def test_an_archive_of_anything_else_leaves_nothing(
    members: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("veilray.exchange.keys.backup.decrypt_with", lambda *_, **__: _archive(members))
    (tmp_path / "backup.age").touch()
    with pytest.raises(DataError):
        restore_backup(tmp_path / "backup.age", tmp_path / "out", passphrase=PHRASE)
    assert [path.name for path in tmp_path.iterdir()] == ["backup.age"]


def test_what_is_no_backup_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = tmp_path / "backup.age", tmp_path / "out"
    with pytest.raises(DataError, match="missing"):
        restore_backup(file, out, passphrase=PHRASE)
    for data in (b"", b"plain", b"age-encryption.org/v1\n"):
        file.write_bytes(data)
        with pytest.raises(DataError, match="damaged"):
            restore_backup(file, out, passphrase=PHRASE)
    monkeypatch.setattr("veilray.exchange.keys.backup.decrypt_with", lambda *_, **__: b"no archive")
    with pytest.raises(DataError, match="no backup"):
        restore_backup(file, out, passphrase=PHRASE)


def test_a_backup_that_lacks_a_key_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyFolder.create(tmp_path / "keys", name="hospital")
    (tmp_path / "backup.age").touch()
    whole = _contents(keys.path)
    for name in (*keys.files_in_use(), "ledger.db"):
        less = _archive({other: data for other, data in whole.items() if other != name})
        monkeypatch.setattr("veilray.exchange.keys.backup.decrypt_with", lambda *_, less=less, **__: less)
        with pytest.raises(DataError, match=f"lacks {name}"):
            restore_backup(tmp_path / "backup.age", tmp_path / "out", passphrase=PHRASE)
    monkeypatch.setattr("veilray.exchange.keys.backup.decrypt_with", lambda *_, **__: _archive(whole))
    restored = restore_backup(tmp_path / "backup.age", tmp_path / "out", passphrase=PHRASE)
    assert _contents(restored.path) == whole
