"""How much one file may ask for: refused before anything is allocated, so that a small hostile file costs nothing."""

from __future__ import annotations

from veilray.errors import ImageError

MAX_PIXELS = 50_000_000
"""Pixels an image may have; the largest digital radiographs have about 20 million."""

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Bytes a file, or a member of an archive once decompressed, may have."""


def check_size(width: int, height: int) -> None:
    """Refuse an image whose header declares no pixels or too many; raises ImageError."""
    if width < 1 or height < 1:
        raise ImageError(f"its header declares {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(f"its header declares {width} x {height} pixels; at most {MAX_PIXELS:,} are read")


def check_bytes(count: int) -> None:
    """Refuse a file or archive member of more than MAX_FILE_BYTES; raises ImageError."""
    if count > MAX_FILE_BYTES:
        raise ImageError(f"it is larger than {MAX_FILE_BYTES // 1024**2} MiB, the most that is read of one image")
