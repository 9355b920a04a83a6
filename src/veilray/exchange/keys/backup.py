"""A key folder as one encrypted file, ledger and sequences included, and back.

The file is a zip archive under age's passphrase encryption: `age --decrypt BACKUP > keys.zip` opens it without Veilray.
Key files that are locked stay so inside: the folder's own passphrase is needed after a restore as before.
"""

from __future__ import annotations

import io
import re
import sqlite3
import zipfile
from pathlib import Path

from veilray.errors import DataError, UsageError
from veilray.exchange.keys.folder import LOCK_FILE, KeyFolder
from veilray.exchange.keys.former import FORMER
from veilray.exchange.keys.keyfile import decrypt_with, encrypt_with, read_private, write_private
from veilray.exchange.keys.keystate import STATE_FILE
from veilray.exchange.keys.peers import PEERS
from veilray.exchange.keys.secret import Secret
from veilray.exchange.ledger.ledger import LEDGER_FILE
from veilray.files import replacing_folder

_MOST_BYTES = 2**32
_FOLDERS = (PEERS, FORMER, "exchange")
# All that is taken into a backup and out of one.
_NAMES = re.compile(
    rf"{re.escape(STATE_FILE)}|{re.escape(LOCK_FILE)}|{re.escape(LEDGER_FILE)}|[a-z]+-[0-9]{{1,5}}\.key"
    rf"|{PEERS}/[A-Za-z0-9][A-Za-z0-9._-]{{0,62}}\.json|{FORMER}/[0-9]{{1,6}}\.json"
    r"|exchange/(?:sequences\.json|log\.jsonl)"
)


def write_backup(keys: KeyFolder, out: Path, *, passphrase: Secret) -> int:
    """Write the backup of a key folder to the new file `out`, 0600; returns the number of files in it.

    Raises UsageError where `out` exists, and DataError where a file of the folder cannot be read.
    """
    if out.exists():
        raise UsageError(f"{out} already exists; name a new file")
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(keys.path.rglob("*")):
            name = file.relative_to(keys.path).as_posix()
            if _NAMES.fullmatch(name):
                archive.writestr(name, _snapshot(file) if name == LEDGER_FILE else read_private(file, most=_MOST_BYTES))
        count = len(archive.namelist())
    write_private(out, encrypt_with(passphrase, room.getvalue()))
    return count


def restore_backup(backup: Path, out: Path, *, passphrase: Secret) -> KeyFolder:
    """Make the new key folder `out` of a backup.

    Raises UsageError where `out` exists, RefusedError where the passphrase is wrong or the backup was altered,
    DataError where it is none.
    """
    with replacing_folder(out, mode=0o700) as folder:
        files = _unpacked(decrypt_with(passphrase, _read(backup), path=backup), backup)
        for name in _FOLDERS:
            (folder / name).mkdir(mode=0o700)
        for name, data in files.items():
            write_private(folder / name, data)
        keys = KeyFolder.open(folder)
        wanted = [*keys.files_in_use(), *([LOCK_FILE] if keys.locked else []), *_ledger_of(keys)]
        if missing := [name for name in wanted if name not in files]:
            raise DataError(f"{backup} lacks {missing[0]}; restore another backup")
    return KeyFolder.open(out)


def _unpacked(plain: bytes, backup: Path) -> dict[str, bytes]:
    """The files in the archive by name; DataError where it is damaged or holds anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(plain)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > _MOST_BYTES:
                raise DataError(f"{backup} would take more than {_MOST_BYTES >> 30} GiB; it is no backup of Veilray's")
            if not all(_NAMES.fullmatch(member.filename) for member in members):
                raise DataError(f"{backup} holds more than keys; it is no backup of Veilray's")
            return {member.filename: archive.read(member) for member in members}
    except DataError:
        raise
    except Exception:  # zipfile raises anything at all on a damaged archive
        raise DataError(f"{backup} holds no keys that can be read; it is no backup of Veilray's") from None


def _ledger_of(keys: KeyFolder) -> list[str]:
    return [LEDGER_FILE] if keys.role == "site-one" else []


def _read(backup: Path) -> bytes:
    # A backup may have come by a stick whose file system knows no permissions.
    try:
        return backup.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{backup} is missing or not a file") from None


def _snapshot(ledger: Path) -> bytes:
    """The ledger as it is between two transactions, whoever else writes it."""
    connection = sqlite3.connect(f"{ledger.resolve().as_uri()}?mode=ro", uri=True, timeout=60.0)
    try:
        return connection.serialize()
    except sqlite3.DatabaseError as error:
        raise DataError(f"{ledger} cannot be read ({error})") from None
    finally:
        connection.close()
