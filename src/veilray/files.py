"""Files on disk: write aside and rename, so that a reader never sees half a file, and digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from veilray.errors import DataError, DiskFullError, UsageError


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    `mode`: permissions, before the umask. DiskFullError where the disk is full.
    """
    with _naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path, mode) as part:
            yield part


@contextlib.contextmanager
def _replacing(path: Path, mode: int) -> Iterator[Path]:
    part = _aside(path)
    part.touch(mode=mode, exist_ok=False)
    try:
        allowed = _close_to_others(part, 0o600)
        yield part
        sync(part)
        part.chmod(allowed)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when the block ends well; `path` must not exist yet.

    `mode`: permissions, before the umask. Where the block fails nothing is left. UsageError where `path` exists,
    DiskFullError where the disk is full.
    """
    check_new_folder(path)
    with _naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing_folder(path, mode) as part:
            yield part


def check_new_folder(path: Path) -> None:
    """UsageError where `path` exists: what is to be written there must be new."""
    if path.exists():
        raise UsageError(f"{path} already exists; name a new folder or remove that one")


@contextlib.contextmanager
def _replacing_folder(path: Path, mode: int) -> Iterator[Path]:
    part = _aside(path)
    part.mkdir(mode=mode)
    try:
        allowed = _close_to_others(part, 0o700)
        yield part
        for file in part.rglob("*"):
            sync(file)
        part.chmod(allowed)
        part.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def _close_to_others(part: Path, mode: int) -> int:
    """Give what was just made the permissions `mode`; returns those that it had, as the umask left them.

    The umask itself is the whole process's: to look at it is to change it, for other threads too.
    """
    allowed = stat.S_IMODE(part.stat().st_mode)
    part.chmod(mode)
    return allowed


def remove_parts(folder: Path) -> None:
    """Remove the files that were being written aside in a folder when their process was killed.

    Those of safetensors are among them, which writes what is aside here aside once more. Only for a folder that nobody
    else writes to.
    """
    for name in (".*.part", ".tmp??????"):
        for part in folder.glob(name):
            if part.is_file():
                part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; DataError where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error})") from None


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read block by block."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _naming_full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        reason = os.strerror(error.errno).lower()
        raise DiskFullError(f"cannot write {path}: {reason}, and no part of it was left") from None
