"""Finding images: files, folders and archives, one after the other, archives read in place.

Nothing is left out without a word: what cannot be an image comes as an item with the reason. Hidden files alone are
passed over.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from veilray.errors import ImageError, UsageError
from veilray.images.limits import MAX_FILE_BYTES, check_bytes

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_NESTED = (*_ARCHIVES, ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,  # a compression that zipfile does not know
)


@dataclass(frozen=True, kw_only=True)
class SourceItem:
    """One file to read: at `path`, or as `data` where it lies in an archive, or a `rejection` that says why neither."""

    name: str
    """Its name for reports, `archive.zip:folder/member.png` inside an archive."""
    path: Path | None = None
    data: bytes | None = None
    rejection: str | None = None


def item_bytes(item: SourceItem) -> bytes:
    """The bytes of a file that was found; ImageError with the reason where it cannot be read."""
    if item.rejection is not None:
        raise ImageError(item.rejection)
    if item.path is None:
        return item.data or b""
    try:
        check_bytes(item.path.stat().st_size)
        return item.path.read_bytes()
    except OSError as error:
        raise ImageError(f"it cannot be read: {error.strerror or error}") from None


def find_images(paths: Iterable[str | Path]) -> Iterator[SourceItem]:
    """Every file under `paths` in a stable order: folders sorted, with their subfolders; archives in their own order.

    At most one member of an archive is in memory at a time. Raises UsageError at once where a path does not exist.
    """
    given = [Path(path) for path in paths]
    for path in given:
        if not os.path.lexists(path):
            raise UsageError(f"{path} does not exist")
    return _find(given)


def count_files(paths: Iterable[str | Path]) -> int | None:
    """How many items `find_images` will give, or None where that takes reading an archive first. Opens no file."""
    count = 0
    for path in map(Path, paths):
        if not path.is_dir():
            names = [path.name]
        else:
            names = []
            for _, folders, files in os.walk(path):
                folders[:] = [folder for folder in folders if not folder.startswith(".")]
                names += [file for file in files if not file.startswith(".")]
        if any(name.lower().endswith(_ARCHIVES) for name in names):
            return None
        count += len(names)
    return count


def _find(paths: list[Path]) -> Iterator[SourceItem]:
    for path in paths:
        if path.is_dir():
            yield from _walk(path)
        else:
            yield from _file(path)


def _walk(folder: Path) -> Iterator[SourceItem]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield SourceItem(name=str(folder), rejection=_unreadable(error))
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path)
        elif entry.is_symlink() and entry.is_dir():
            yield SourceItem(name=str(path), rejection="it is a link to a folder, which could lead in circles; name it")
        else:
            yield from _file(path)


def _file(path: Path) -> Iterator[SourceItem]:
    name = str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            yield SourceItem(name=name, rejection="it is not a regular file")
            return
    except OSError as error:
        yield SourceItem(name=name, rejection=_unreadable(error))
        return
    if not name.lower().endswith(_ARCHIVES):
        yield SourceItem(name=name, path=path)
        return
    members = _zip_members(path) if name.lower().endswith(".zip") else _tar_members(path)
    while True:
        # Only the archive's own errors end it: what the caller does between two items is none of its business.
        try:
            item = next(members, None)
        except _ARCHIVE_ERRORS as error:
            reason = _unreadable(error) if isinstance(error, PermissionError) else "the archive is damaged or cut short"
            yield SourceItem(name=name, rejection=f"{reason}; what follows in it is lost")
            return
        if item is None:
            return
        yield item


def _zip_members(path: Path) -> Iterator[SourceItem]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir() or _hidden(member.filename):
                continue
            name = f"{path}:{member.filename}"
            mode = member.external_attr >> 16
            special = bool(mode) and stat.S_IFMT(mode) not in (0, stat.S_IFREG)
            try:
                _check_member(member.filename, special=special, size=member.file_size)
                if member.flag_bits & 1:
                    raise ImageError("it is encrypted; unpack the archive with its password first")
                with archive.open(member) as stream:
                    data = _read_bounded(stream)
            except ImageError as error:
                yield SourceItem(name=name, rejection=str(error))
            except _ARCHIVE_ERRORS:
                yield SourceItem(
                    name=name, rejection="this member of the archive is damaged or packed in an unknown way"
                )
            else:
                yield SourceItem(name=name, data=data)


def _tar_members(path: Path) -> Iterator[SourceItem]:
    with contextlib.ExitStack() as stack:
        # gzip's own reader: unlike tarfile's stream it checks the CRC and notices a missing end.
        plain = path.name.lower().endswith(".tar")
        stream: io.BufferedIOBase = stack.enter_context(path.open("rb") if plain else gzip.GzipFile(path))
        # Streaming mode goes through the archive once, from front to back, so nothing is decompressed twice.
        archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))
        for member in archive:
            if member.isdir() or _hidden(member.name):
                continue
            name = f"{path}:{member.name}"
            try:
                _check_member(member.name, special=not member.isreg(), size=member.size)
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                with content:
                    data = _read_bounded(content)
            except ImageError as error:
                yield SourceItem(name=name, rejection=str(error))
            else:
                yield SourceItem(name=name, data=data)
        while stream.read(1 << 20):  # to the end, where gzip keeps its CRC
            pass


def _check_member(name: str, *, special: bool, size: int) -> None:
    """Refuse a member that is no plain file inside the archive, or too large."""
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in _parts(name) or "\0" in name:
        raise ImageError("its name in the archive leads out of the archive's folder")
    if special:
        raise ImageError("it is a link or a device, not a file")
    if name.lower().endswith(_NESTED):
        raise ImageError("it is an archive inside an archive; unpack the outer one first")
    check_bytes(size)


def _read_bounded(stream: IO[bytes]) -> bytes:
    # The declared size may be a lie: reading stops one byte beyond the limit.
    data = stream.read(MAX_FILE_BYTES + 1)
    check_bytes(len(data))
    return data


def _hidden(name: str) -> bool:
    """Hidden files, and what macOS adds to archives; `.` and `..` are no hidden names."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in _parts(name))


def _parts(name: str) -> list[str]:
    return re.split(r"[/\\]", name)


def _unreadable(error: BaseException) -> str:
    return f"it cannot be read: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
