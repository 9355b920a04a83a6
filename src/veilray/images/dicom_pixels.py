"""Pixel data of a DICOM data set as stored values."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from veilray.errors import ImageError
from veilray.images.codestream import read_frame_header
from veilray.images.limits import check_size
from veilray.images.radiograph import StoredImage

if TYPE_CHECKING:
    from pydicom import Dataset

# One decoder a transfer syntax, so that the same file gives the same values everywhere. GDCM is the only one for JPEG
# Lossless. JPEG Extended with 12 bits (PS3.5 10.4) pydicom leaves to none of these.
_DECODERS = {
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG Baseline
    "1.2.840.10008.1.2.4.51": "pillow",  # JPEG Extended
    "1.2.840.10008.1.2.4.57": "gdcm",  # JPEG Lossless
    "1.2.840.10008.1.2.4.70": "gdcm",  # JPEG Lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": "pyjpegls",  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.81": "pyjpegls",  # JPEG-LS Near-Lossless
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.91": "pylibjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.201": "pylibjpeg",  # High-Throughput JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.202": "pylibjpeg",  # the same, RPCL
    "1.2.840.10008.1.2.4.203": "pylibjpeg",  # High-Throughput JPEG 2000
}
_RLE = "1.2.840.10008.1.2.5"
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_LISTENING = threading.Lock()
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"

TRANSFER_SYNTAXES = (*_UNCOMPRESSED, *(syntax for syntax in _DECODERS if syntax != _JPEG_EXTENDED), _RLE)
"""Transfer syntaxes (PS3.6 A) in which every radiograph can be decoded; of JPEG Extended only 8 bits can."""


@dataclass(frozen=True, kw_only=True)
class StoredPixels:
    """Stored values, (H, W), and the range that they are declared to have."""

    stored: StoredImage
    bits: int
    """Bits Stored (0028,0101)."""
    low: int
    high: int
    padding: tuple[int, int] | None
    """First and last value of Pixel Padding Value (0028,0120) and Pixel Padding Range Limit (0028,0121)."""
    padded: npt.NDArray[np.bool_] | None
    """(H, W), which pixels are padding; None where none is declared."""
    cells: StoredImage
    """(H, W), the pixel cells as decoded, bits above High Bit included: what padding is written with."""


def decode_pixels(dataset: Dataset) -> StoredPixels:
    """Decode the single greyscale frame of a data set; ImageError with the reason where that is not possible."""
    bits, allocated, signed = _check_layout(dataset)
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    compressed = (
        dataset.file_meta.TransferSyntaxUID.is_compressed and not dataset.file_meta.TransferSyntaxUID.is_deflated
    )
    if compressed and syntax != _RLE:
        _check_frame(dataset, syntax, allocated)
    cells = _decode(dataset, syntax)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    padding = _padding(dataset, allocated, signed)
    padded = None if padding is None else (cells >= padding[0]) & (cells <= padding[1])
    if syntax in _DECODERS:
        # A codec never leaves other bits beside the values, so what is out of range is damage; cut to the low bits it
        # would wrap round.
        beyond = (cells < low) | (cells > high)
        if (beyond if padded is None else beyond & ~padded).any():
            raise ImageError(f"its compressed pixels exceed the {bits} bits that its header declares")
        stored = np.clip(cells, low, high)
    else:
        # Bits above High Bit have no meaning and may hold old overlays (PS3.5 8.1.1): shifted out, the sign kept.
        spare = cells.dtype.type(8 * cells.dtype.itemsize - bits)
        stored = (cells << spare) >> spare
        if padding is not None and padded is not None:
            padded |= (stored >= padding[0]) & (stored <= padding[1])
    return StoredPixels(stored=stored, bits=bits, low=low, high=high, padding=padding, padded=padded, cells=cells)


def _check_layout(dataset: Dataset) -> tuple[int, int, bool]:
    """Bits stored, bits allocated and signedness, after every check that needs no pixel (PS3.3 C.7.6.3)."""
    if "PixelData" not in dataset or not dataset.PixelData:
        raise ImageError("it holds no pixel data, or is cut short before them")
    check_size(int(dataset.Columns), int(dataset.Rows))
    bits, allocated, signed = int(dataset.BitsStored), int(dataset.BitsAllocated), int(dataset.PixelRepresentation)
    if allocated not in (8, 16) or not 1 <= bits <= allocated or signed not in (0, 1) or (signed and bits < 2):
        raise ImageError(f"it stores {bits} of {allocated} bits a pixel, signed {signed}; 1 to 16 in 8 or 16 are read")
    high_bit = int(dataset.get("HighBit", bits - 1))
    if high_bit != bits - 1:
        raise ImageError(f"its High Bit is {high_bit} with {bits} bits stored; the standard asks for {bits - 1}")
    return bits, allocated, bool(signed)


def _check_frame(dataset: Dataset, syntax: str, allocated: int) -> None:
    from pydicom.encaps import get_frame

    if syntax not in _DECODERS:
        raise ImageError(f"its transfer syntax, {_name(dataset)}, cannot be decoded")
    header = read_frame_header(get_frame(dataset.PixelData, 0, number_of_frames=1))
    if syntax == _JPEG_EXTENDED and header.precision != 8:
        raise ImageError(f"its transfer syntax, {_name(dataset)} with {header.precision} bits, cannot be decoded")
    declared = int(dataset.Rows), int(dataset.Columns), 1
    if (header.height, header.width, header.components) != declared or header.precision > allocated:
        raise ImageError(
            f"its compressed frame has {header.width} x {header.height} pixels, {header.components} samples and "
            f"{header.precision} bits, unlike its header: {declared[1]} x {declared[0]}, 1, {allocated}"
        )


def _decode(dataset: Dataset, syntax: str) -> StoredImage:
    from pydicom.pixels.utils import pixel_array

    # pylibjpeg's RLE is faster but panics on damaged data, which no `except Exception` catches.
    plugin = "pydicom" if syntax == _RLE else _DECODERS.get(syntax, "")
    try:
        with _listening() if plugin == "gdcm" else contextlib.nullcontext():
            # The bits above High Bit are left in place: padding may be declared in all the bits allocated.
            cells = pixel_array(dataset, raw=True, decoding_plugin=plugin, correct_unused_bits=False)
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything at all on damaged data
        if "number of bytes of pixel data is less" in str(error):
            raise ImageError("its pixel data are cut short") from None
        if "missing dependencies" in str(error):
            raise ImageError(
                f"its transfer syntax, {_name(dataset)}, needs more packages: install Veilray with its extra 'dicom'"
            ) from None
        raise ImageError(f"its pixels ({_name(dataset)}) cannot be decoded: they are damaged or cut short") from None
    if cells.shape != (int(dataset.Rows), int(dataset.Columns)) or cells.dtype.kind not in "iu":
        raise ImageError("its decoded pixels do not have the size that its header declares")
    return cells


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """Keep GDCM's complaints off standard error, and raise where its codec admits that the data are corrupt.

    It decodes what it can and says so nowhere else. The descriptor belongs to the whole process, so one thread listens
    at a time, and what others print meanwhile is lost.
    """
    with _LISTENING, tempfile.TemporaryFile() as notes:
        terminal = os.dup(2)
        try:
            os.dup2(notes.fileno(), 2)
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        notes.seek(0)
        if b"Corrupt JPEG data" in notes.read():
            raise ImageError("its compressed pixels are damaged")


def _padding(dataset: Dataset, allocated: int, signed: bool) -> tuple[int, int] | None:
    """The range of padding, whichever end comes first (PS3.3 C.7.5.1.1.2)."""
    first = _cell_value(dataset.get("PixelPaddingValue"), allocated, signed)
    if first is None:
        return None
    last = _cell_value(dataset.get("PixelPaddingRangeLimit"), allocated, signed)
    return (first, first) if last is None else (min(first, last), max(first, last))


def _cell_value(value: Any, allocated: int, signed: bool) -> int | None:
    # Its value representation is US or SS; some writers take the wrong one, so only the bits count.
    if value is None or value == "":
        return None
    bits: int = int(value) & (2**allocated - 1)
    return bits - 2**allocated if signed and bits >= 2 ** (allocated - 1) else bits


def _name(dataset: Dataset) -> str:
    return str(dataset.file_meta.TransferSyntaxUID.name)
