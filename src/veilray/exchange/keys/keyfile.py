"""One key in one file: readable by its owner only, written aside and renamed, encrypted where there is a passphrase.

A file that is locked is encrypted by age (age-encryption.org/v1) to an identity that is itself encrypted by the
passphrase (scrypt), in `lock.age`; so `age --decrypt --identity lock.age` opens every key without Veilray.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from veilray.errors import DataError, RefusedError
from veilray.exchange.keys.secret import Secret
from veilray.files import replacing

if TYPE_CHECKING:
    import pyrage
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

AGE_HEADER = b"age-encryption.org/v1\n"
KEY_BYTES = 32

_MOST_BYTES = 16384
_PLAIN = re.compile(r"VEILRAY-([A-Z]+)-KEY-1:([0-9a-f]{64}):([0-9a-f]{16})")
_AGE_IDENTITY = re.compile(r"AGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}")
# 2^20 blocks of scrypt: some 4 seconds and 1 GB. age itself writes 2^18 or as much as a second is worth.
_MOST_WORK = 20


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to a file that only its owner can read, whole or not at all."""
    with replacing(path, mode=0o600) as part:
        part.write_bytes(data)


def read_private(path: Path, *, most: int = _MOST_BYTES) -> bytes:
    """The bytes of a private file.

    RefusedError where anyone but the owner could read it or it belongs to someone else; DataError where it is missing,
    not a file, or longer than `most` bytes.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({(error.strerror or 'error').lower()}); restore a backup") from None
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is not a file; restore a backup")
        check_private(path, status)
        data = stream.read(most + 1)
    if len(data) > most:
        raise DataError(f"{path} is too long to be what it should be; restore a backup")
    return data


def check_private(path: Path, status: os.stat_result) -> None:
    """RefusedError where group or others have any right on a file or folder, or it belongs to someone else."""
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise RefusedError(
            f"{path} is open to other users: run `chmod go-rwx {path}`, and rotate the key if it may have been read"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise RefusedError(f"{path} belongs to another user; use keys of your own")


def encode_plain(secret: Secret, *, kind: str) -> bytes:
    """A 32-byte key as one line of text, with a check by which a damaged one is noticed."""
    return f"VEILRAY-{kind.upper()}-KEY-1:{secret.reveal().hex()}:{_check(secret, kind)}\n".encode()


def decode_plain(data: bytes, *, kind: str, path: Path) -> Secret:
    """The way back; DataError where the text is damaged or another kind of key."""
    match = _PLAIN.fullmatch(data.decode("latin-1").strip())
    if match is None or match[1] != kind.upper():
        raise _damaged(path, kind)
    secret = Secret(bytes.fromhex(match[2]))
    if not hmac.compare_digest(match[3], _check(secret, kind)):
        raise _damaged(path, kind)
    return secret


def encode_signing(key: Ed25519PrivateKey) -> bytes:
    """An Ed25519 key as PKCS #8 in PEM (RFC 8410), as OpenSSL writes it."""
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def decode_signing(data: bytes, *, path: Path) -> Ed25519PrivateKey:
    """The way back; DataError where the text is damaged or another kind of key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _damaged(path, "signing") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _damaged(path, "signing")
    return key


def decode_identity(data: bytes, *, path: Path) -> pyrage.x25519.Identity:
    """The age identity in an identity file, comments allowed; DataError where there is not exactly one."""
    import pyrage

    lines = [line.strip() for line in data.decode("latin-1").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if len(keys) == 1 and _AGE_IDENTITY.fullmatch(keys[0]):
        with suppress(pyrage.IdentityError):
            return pyrage.x25519.Identity.from_str(keys[0])
    raise _damaged(path, "receiving")


def encrypt_with(passphrase: Secret, data: bytes) -> bytes:
    """`data` encrypted by a passphrase, as `age --passphrase` does."""
    import pyrage

    encrypted: bytes = pyrage.passphrase.encrypt(data, passphrase.reveal().decode())
    return encrypted


def decrypt_with(passphrase: Secret, data: bytes, *, path: Path) -> bytes:
    """The way back; RefusedError where the passphrase is wrong or the file altered, DataError where it is not age's."""
    import pyrage

    work = re.match(re.escape(AGE_HEADER) + rb"-> scrypt [A-Za-z0-9+/]{22} ([0-9]{1,3})\n", data)
    if work is None or int(work[1]) > _MOST_WORK:
        raise DataError(f"{path} is damaged or was not encrypted by a passphrase; restore a backup")
    try:
        decrypted: bytes = pyrage.passphrase.decrypt(data, passphrase.reveal().decode())
    except pyrage.DecryptError:
        raise RefusedError(f"{path}: the passphrase is wrong, or the file was altered") from None
    return decrypted


def _check(secret: Secret, kind: str) -> str:
    return secret.derive(f"veilray check of a {kind} key").reveal()[:8].hex()


def _damaged(path: Path, kind: str) -> DataError:
    return DataError(f"{path} is damaged or holds no {kind} key; restore a backup")
