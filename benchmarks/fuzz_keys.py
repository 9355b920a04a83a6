"""Key folders, with a passphrase and without, and their backups, for `fuzz.py`: what is done with mutated ones."""

from __future__ import annotations

import base64
import hmac
import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from veilray.exchange.keys.backup import restore_backup, write_backup
from veilray.exchange.keys.folder import LOCK_FILE, KeyFolder
from veilray.exchange.keys.keyfile import AGE_HEADER, decrypt_with
from veilray.exchange.keys.secret import Secret

Mutate = Callable[[bytes, random.Random], bytes]

PASSPHRASE = Secret(b"correct horse")
_KEY_FILES = ("keys.json", "noise-1.key", "pseudonyms-1.key", "ledger-1.key", "signing-1.key", "receiving-1.key")
_WORK = 4
"""Doublings of scrypt's work in what is mutated; age itself takes a second, of which a fuzzer has too few."""


@dataclass(frozen=True)
class Locked:
    """Genuine key material under a passphrase."""

    folder: Path
    """A key folder."""
    keys: tuple[object, ...]
    """What it gives."""
    backup: bytes
    """Its backup."""
    archive: bytes
    """The archive inside that."""


def make_locked(folder: Path) -> Locked:
    """A key folder with a passphrase, and its backup."""
    keys = KeyFolder.create(folder / "locked", name="locked", passphrase=PASSPHRASE)
    keys.pin(KeyFolder.create(folder / "peer", name="peer", role="site-two").card)
    lock = keys.path / LOCK_FILE
    lock.write_bytes(encrypt_cheaply(decrypt_with(PASSPHRASE, lock.read_bytes(), path=lock)))
    write_backup(keys, folder / "backup.age", passphrase=PASSPHRASE)
    archive = decrypt_with(PASSPHRASE, (folder / "backup.age").read_bytes(), path=folder)
    as_they_are = keys_as_they_are(keys.path, PASSPHRASE)
    return Locked(keys.path, as_they_are, encrypt_cheaply(archive), archive)


def keys_as_they_are(folder: Path, passphrase: Secret | None = None) -> tuple[object, ...]:
    """All that a key folder gives, to be compared."""
    keys = KeyFolder.open(folder, passphrase=passphrase)
    with keys.ledger() as ledger:
        releases = ledger.releases()
    signature = keys.signing_key().sign(b"x")
    secrets = (keys.noise_secret(), keys.pseudonym_key("ab" * 32), keys.ledger_key())
    identities = [str(identity) for identity in keys.age_identities()]
    peers = [card.fingerprint for card in keys.peers()]
    return (keys.card, keys.role, signature, [secret.reveal() for secret in secrets], identities, releases, peers)


def mutated_keys(folder: Path, expected: tuple[object, ...], chance: random.Random, mutate: Mutate) -> bool:
    """Mutate one file of a key folder, use the keys, and put the file back; whether they were the same."""
    return _with_mutated(folder / chance.choice(_KEY_FILES), expected, chance, mutate, passphrase=None)


def mutated_locked_keys(locked: Locked, chance: random.Random, mutate: Mutate) -> bool:
    """As `mutated_keys`, where the key files are encrypted and the lock may be what is mutated."""
    file = locked.folder / chance.choice((LOCK_FILE, *_KEY_FILES))
    return _with_mutated(file, locked.keys, chance, mutate, passphrase=PASSPHRASE)


def _with_mutated(
    file: Path, expected: tuple[object, ...], chance: random.Random, mutate: Mutate, *, passphrase: Secret | None
) -> bool:
    genuine = file.read_bytes()
    try:
        file.write_bytes(mutate(genuine, chance))
        return keys_as_they_are(file.parent, passphrase) == expected
    finally:
        file.write_bytes(genuine)


def mutated_backup(locked: Locked, room: Path, chance: random.Random, mutate: Mutate) -> bool:
    """Mutate a backup, or the archive inside its encryption, and restore it; whether the same keys come out."""
    match chance.randrange(3):
        case 0:
            data = mutate(locked.backup, chance)
        case 1:
            data = encrypt_cheaply(mutate(locked.archive, chance))
        case _:
            data = encrypt_cheaply(_other_archive(locked.archive, chance, mutate))
    backup, out = room / "case.age", room / "restored"
    backup.write_bytes(data)
    try:
        restored = restore_backup(backup, out, passphrase=PASSPHRASE)
        return keys_as_they_are(restored.path, PASSPHRASE) == locked.keys
    finally:
        backup.unlink()
        rmtree(out, ignore_errors=True)


def _other_archive(archive: bytes, chance: random.Random, mutate: Mutate) -> bytes:
    """A sound archive with one member mutated, dropped or named otherwise, as whoever has the passphrase could write.

    Never a pinned card, which nothing but the passphrase protects.
    """
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        members = {name: source.read(name) for name in source.namelist()}
    name = chance.choice([name for name in members if not name.startswith("peers/")])
    data = members.pop(name)
    match chance.randrange(3):
        case 0:
            members[name] = mutate(data, chance)
        case 1:
            members[chance.choice(("../x.key", "/x.key", "peers/../../x.json", "x", "noise-99999.key", "a\0b"))] = data
        case _:
            pass
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w", zipfile.ZIP_DEFLATED) as target:
        for kept, content in members.items():
            target.writestr(kept, content)
    return room.getvalue()


def encrypt_cheaply(data: bytes) -> bytes:
    """age encryption by PASSPHRASE with little work (age-encryption.org/v1, scrypt recipient stanza)."""
    file_key, salt, nonce = random.randbytes(16), random.randbytes(16), random.randbytes(16)
    label = AGE_HEADER.strip() + b"/scrypt" + salt
    wrapping = Scrypt(salt=label, length=32, n=2**_WORK, r=8, p=1).derive(PASSPHRASE.reveal())
    wrapped = ChaCha20Poly1305(wrapping).encrypt(bytes(12), file_key, None)
    stanza = b"-> scrypt %s %d\n%s\n" % (_base64(salt), _WORK, _base64(wrapped))
    header = AGE_HEADER + stanza + b"---"
    mac = hmac.digest(_expanded(file_key, b"", b"header"), header, "sha256")
    payload = ChaCha20Poly1305(_expanded(file_key, nonce, b"payload"))
    chunks = [data[start : start + 2**16] for start in range(0, len(data), 2**16)] or [b""]
    sealed = [
        payload.encrypt(number.to_bytes(11, "big") + bytes([number == len(chunks) - 1]), chunk, None)
        for number, chunk in enumerate(chunks)
    ]
    return header + b" " + _base64(mac) + b"\n" + nonce + b"".join(sealed)


def _expanded(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=purpose).derive(key)


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")
