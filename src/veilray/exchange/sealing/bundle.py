"""The stream inside a bundle's encryption: a plain tar of the manifest, its signature and the parts, in that order.

GNU tar unpacks it. The reader here takes none of tar's liberties: once the manifest's signature holds, every header
must be, byte for byte, the one that the manifest calls for.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from veilray.errors import BundleError, DataError
from veilray.exchange.sealing.manifest import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, SIGNATURE_BYTES, Manifest, Part

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on

BLOCK = 2**20
"""Bytes that are read, hashed and written at once."""
_RECORD = tarfile.BLOCKSIZE
_END = bytes(2 * _RECORD)
_BROKEN = "the bundle is damaged or altered: {}; ask its sender for another copy"


def tar_header(name: str, size: int) -> bytes:
    """The one tar header, 512 bytes, that a file of this name and size has in a bundle."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info.tobuf(format=tarfile.GNU_FORMAT)


@contextmanager
def open_source(folder: Path, name: str) -> Iterator[FileIO]:
    """A file to be sealed, opened; DataError where it is no regular file, such as a link."""
    try:
        handle = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise DataError(f"{folder / name} cannot be sealed: {(error.strerror or 'unreadable').lower()}") from None
    with open(handle, "rb", buffering=0) as stream:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DataError(f"{folder / name} cannot be sealed: it is no regular file")
        yield stream


def measure(folder: Path, name: str) -> Part:
    """Size and SHA-256 of a file to be sealed."""
    with open_source(folder, name) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return Part(name=name, size=os.fstat(stream.fileno()).st_size, sha256=digest)


class BundleSource(io.RawIOBase):
    """The tar stream of a bundle, made while it is read; memory for one block."""

    def __init__(
        self, folder: Path, parts: tuple[Part, ...], *, signed: bytes, signature: bytes, advance: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._blocks = _tar_blocks(folder, parts, signed, signature, advance)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Buffer) -> int:
        """The next bytes; none at the end. DataError where a file is no longer what was measured."""
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        with memoryview(buffer) as target:
            count = min(len(target), len(self._rest))
            target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class Faithful:
    """A stream whose own errors can be told from the cipher's, since the age library may wrap what it is thrown."""

    def __init__(self, stream: IO[bytes] | io.RawIOBase) -> None:
        self._stream = stream
        self.failure: BaseException | None = None
        """What the stream raised."""

    def read(self, size: int = -1) -> bytes:
        """As the stream's."""
        with self._watched():
            return self._stream.read(size) or b""

    def write(self, data: bytes) -> int:
        """As the stream's."""
        with self._watched():
            return self._stream.write(data) or 0

    def flush(self) -> None:
        """As the stream's."""
        with self._watched():
            self._stream.flush()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.failure = error
            raise


@contextmanager
def streams_first(*streams: Faithful) -> Iterator[None]:
    """Where the block fails because one of the streams did, raise that stream's own error."""
    try:
        yield
    except BaseException:
        for stream in streams:
            if stream.failure is not None:
                raise stream.failure from None
        raise


def _tar_blocks(
    folder: Path, parts: tuple[Part, ...], signed: bytes, signature: bytes, advance: Callable[[int], None]
) -> Iterator[bytes]:
    for name, content in ((MANIFEST, signed), (SIGNATURE, signature)):
        yield tar_header(name, len(content)) + content + _padding(len(content))
    for part in parts:
        yield tar_header(part.name, part.size)
        yield from _part_blocks(folder, part, advance)
        if part.size % _RECORD:
            yield _padding(part.size)
    yield _END


def _part_blocks(folder: Path, part: Part, advance: Callable[[int], None]) -> Iterator[bytes]:
    digest, left = hashlib.sha256(), part.size
    with open_source(folder, part.name) as stream:
        while left and (block := stream.read(min(BLOCK, left))):
            digest.update(block)
            left -= len(block)
            advance(len(block))
            yield block
        if left or stream.read(1) or digest.hexdigest() != part.sha256:
            raise DataError(f"{folder / part.name} changed while it was being sealed; seal it again when it is at rest")


def _padding(size: int) -> bytes:
    return bytes(-size % _RECORD)


class BundleSink(io.RawIOBase):
    """Takes the tar stream of a bundle as it is decrypted, checks it against its own manifest, and keeps the parts.

    `accept` gets the manifest's bytes and their signature before anything is written: it returns the manifest, or
    raises. `folder` takes the parts; None where they are checked only. Anything that is not exactly what the manifest
    says raises BundleError.
    """

    def __init__(
        self, folder: Path | None, *, accept: Callable[[bytes, bytes], Manifest], advance: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._folder, self._accept, self._advance = folder, accept, advance
        self._pending = bytearray()
        self._view = memoryview(b"")
        self._done = False
        self._parser = self._parse()
        next(self._parser)

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Buffer) -> int:
        """Take some bytes of the stream."""
        with memoryview(data) as view:
            self._pending += view
            count = len(view)
        if len(self._pending) >= BLOCK:
            self._feed()
        return count

    def finish(self) -> None:
        """Take what is left. BundleError unless the stream has come to its end."""
        self._feed()
        if not self._done:
            raise BundleError(_BROKEN.format("it ends early"), reason="truncated")

    def close(self) -> None:
        """Close the part that was being written, after a failure."""
        self._parser.close()
        super().close()

    def _feed(self) -> None:
        block, self._pending = bytes(self._pending), bytearray()
        if block and self._done:
            raise BundleError(_BROKEN.format("something follows its end"), reason="trailing")
        try:
            if block:
                self._parser.send(memoryview(block))
        except StopIteration:
            self._done = True

    def _parse(self) -> Generator[None, memoryview, None]:
        signed = yield from self._small(MANIFEST, MAX_MANIFEST_BYTES)
        signature = yield from self._small(SIGNATURE, SIGNATURE_BYTES)
        manifest = self._accept(signed, signature)
        for part in manifest.parts:
            if (yield from self._exactly(_RECORD)) != tar_header(part.name, part.size):
                raise BundleError(_BROKEN.format("its parts are not those of its manifest"), reason="parts")
            yield from self._keep(part)
            yield from self._skip_padding(part.size)
        if (yield from self._exactly(len(_END))) != _END or self._view:
            raise BundleError(_BROKEN.format("more follows its last part"), reason="trailing")

    def _small(self, name: str, most: int) -> Generator[None, memoryview, bytes]:
        header = yield from self._exactly(_RECORD)
        try:
            size = tarfile.TarInfo.frombuf(header, "utf-8", "strict").size
        except (tarfile.TarError, ValueError):
            size = -1
        if not 0 < size <= most or header != tar_header(name, size):
            raise BundleError(f"this is not a bundle of Veilray's: {name} is not where it should be", reason="format")
        content = yield from self._exactly(size)
        yield from self._skip_padding(size)
        return content

    def _keep(self, part: Part) -> Generator[None, memoryview, None]:
        digest, left = hashlib.sha256(), part.size
        with self._target(part) as stream:
            while left:
                block = yield from self._some(left)
                digest.update(block)
                if stream is not None:
                    stream.write(block)
                left -= len(block)
                self._advance(len(block))
        if digest.hexdigest() != part.sha256:
            raise BundleError(_BROKEN.format("a part is not the one that was signed"), reason="parts")

    @contextmanager
    def _target(self, part: Part) -> Iterator[BinaryIO | None]:
        if self._folder is None:
            yield None
            return
        handle = os.open(self._folder / part.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as stream:  # noqa: PTH123 - a descriptor
            yield stream

    def _skip_padding(self, size: int) -> Generator[None, memoryview, None]:
        if any((yield from self._exactly(-size % _RECORD))):
            raise BundleError(_BROKEN.format("its padding is not empty"), reason="format")

    def _exactly(self, size: int) -> Generator[None, memoryview, bytes]:
        content = bytearray()
        while len(content) < size:
            content += yield from self._some(size - len(content))
        return bytes(content)

    def _some(self, most: int) -> Generator[None, memoryview, memoryview]:
        while not self._view:
            self._view = yield
        block, self._view = self._view[:most], self._view[most:]
        return block
