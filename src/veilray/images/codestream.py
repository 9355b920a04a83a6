"""What a compressed frame says of itself, read before a decoder sees it.

Decoders allocate what the frame's own header asks for, not what the DICOM header promises, and some fill in silently
what a truncated frame lacks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from veilray.errors import ImageError

_JPEG_START, _J2K_START = b"\xff\xd8\xff", b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
# Start of frame: ITU-T T.81 table B.1 without DHT, JPG and DAC, and JPEG-LS's SOF55 (T.87).
_FRAME_MARKERS = ({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}) | {0xF7}


@dataclass(frozen=True, kw_only=True)
class FrameHeader:
    """Size of a compressed frame."""

    height: int
    width: int
    components: int
    precision: int
    """Bits a sample."""


def read_frame_header(frame: bytes) -> FrameHeader:
    """The header of a JPEG, JPEG-LS or JPEG 2000 frame; ImageError where it is none or is cut short."""
    try:
        if frame.startswith(_JPEG_START):
            header = _jpeg_header(frame)
        elif frame.startswith(_J2K_START):
            header = _j2k_header(frame)
        else:
            raise ImageError("its compressed pixels are not in the format that its header names")
    except (struct.error, IndexError):
        raise ImageError("its compressed pixels are damaged or cut short") from None
    # Items have an even length, so a zero may follow (PS3.5 A.4); some writers add more, or 0xFF.
    if not frame.rstrip(b"\0\xff").endswith(_END):
        raise ImageError("its compressed pixels are cut short")
    return header


def _jpeg_header(frame: bytes) -> FrameHeader:
    place = 2
    while True:
        while frame[place] == 0xFF and frame[place + 1] == 0xFF:  # fill bytes
            place += 1
        if frame[place] != 0xFF:
            raise IndexError
        marker = frame[place + 1]
        (length,) = struct.unpack_from(">H", frame, place + 2)
        if marker in _FRAME_MARKERS:
            precision, height, width, components = struct.unpack_from(">BHHB", frame, place + 4)
            return FrameHeader(height=height, width=width, components=components, precision=precision)
        place += 2 + max(length, 2)


def _j2k_header(frame: bytes) -> FrameHeader:
    # SIZ, ITU-T T.800 A.5.1: after the marker, Lsiz and Rsiz come the ends and the offsets of the image area.
    right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
    components, precision = struct.unpack_from(">HB", frame, 40)
    return FrameHeader(height=bottom - top, width=right - left, components=components, precision=(precision & 0x7F) + 1)
