"""One file made ready for a cohort: read, identified by its pixels, resampled. Runs in worker processes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from veilray.errors import ImageError
from veilray.images.radiograph import FloatImage, Levels, Radiograph, levels_dtype, to_levels
from veilray.images.read import read_radiograph, read_radiograph_bytes
from veilray.images.resize import resize
from veilray.images.sources import SourceItem


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A radiograph as a cohort keeps it."""

    radiograph: Radiograph
    """All but its pixels, which are left empty."""
    height: int
    """Height of the original."""
    width: int
    """Width of the original."""
    sha256: str
    """Digest of the native decoded pixels and their shape, before resampling, whatever the file format or bit depth."""
    levels: Levels
    """(H, W), uint8 or uint16, at the cohort's size."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A file that cannot be used."""

    source: str
    reason: str


def prepare(item: SourceItem, *, size: int | None, modalities: Collection[str] | None) -> Prepared | Rejected:
    """Read one file and resample it to `size` x `size`, or keep its own size where that is None."""
    if item.rejection is not None:
        return Rejected(source=item.name, reason=item.rejection)
    try:
        radiograph = _read(item, modalities)
        height, width = radiograph.pixels.shape
        pixels = radiograph.pixels
        if size is not None:
            pixels = resize(pixels, height=size, width=size, bit_depth=radiograph.bit_depth)
        return Prepared(
            radiograph=replace(radiograph, pixels=np.empty((0, 0), dtype=np.float32), source=item.name),
            height=height,
            width=width,
            sha256=pixel_digest(radiograph.pixels),
            levels=to_levels(pixels, levels_dtype(radiograph.bit_depth)),
        )
    except ImageError as error:
        return Rejected(source=item.name, reason=str(error))
    except Exception as error:
        # One strange file among a hundred thousand must not end the import; it is reported like any other.
        return Rejected(source=item.name, reason=f"it cannot be read ({type(error).__name__}: {error})")


def pixel_digest(pixels: FloatImage) -> str:
    """SHA-256 over the shape and the pixels as 16-bit levels: equal for the same radiograph as PNG and as DICOM."""
    levels = to_levels(pixels, np.uint16)
    digest = hashlib.sha256(f"{levels.shape[0]}x{levels.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(levels, dtype="<u2").data)
    return digest.hexdigest()


def _read(item: SourceItem, modalities: Collection[str] | None) -> Radiograph:
    chosen = {} if modalities is None else {"modalities": modalities}
    if item.data is not None:
        return read_radiograph_bytes(item.data, source=item.name, **chosen)
    if item.path is None:
        raise ImageError("there is nothing to read")
    return read_radiograph(item.path, **chosen)
