"""Reading one radiograph, whatever its format: the content decides, never the file's name."""

from __future__ import annotations

import contextlib
import re
import stat
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from veilray.errors import ImageError, UsageError
from veilray.images.dicom import DEFAULT_MODALITIES, DecodedDicom, decode_dicom, is_dicom, open_dicom
from veilray.images.header import printable
from veilray.images.limits import check_bytes
from veilray.images.png import PNG_SIGNATURE, decode_png
from veilray.images.radiograph import IntensityMap, Radiograph, map_stored
from veilray.images.raster import JPEG_SIGNATURE, Raster, decode_jpeg

# NIH ChestX-ray14 names its images PATIENT_FOLLOWUP.png: eight and three digits.
_NIH_NAME = re.compile(r"([0-9]{8})_[0-9]{3}")
_IN_ARCHIVE = re.compile(r".*?\.(?:zip|tar|tar\.gz|tgz):(?P<member>.+)", re.IGNORECASE | re.DOTALL)


def read_radiograph(path: str | Path, *, modalities: Collection[str] = DEFAULT_MODALITIES) -> Radiograph:
    """Read a PNG, JPEG or DICOM file as pixels (H, W), float32, [0, 1], with its identity and its intensity map.

    `modalities` are the DICOM modalities (0008,0060) accepted. Raises ImageError with the reason where the file is no
    radiograph or cannot be read, UsageError where nothing exists at `path`.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("it is not a regular file")
        check_bytes(status.st_size)
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except OSError as error:
        raise ImageError(f"it cannot be read: {error.strerror or error}") from None
    return _read(data, source=str(path), name=path.stem, modalities=modalities)


def read_radiograph_bytes(data: bytes, *, source: str, modalities: Collection[str] = DEFAULT_MODALITIES) -> Radiograph:
    """Read a radiograph from the bytes of a file; otherwise as `read_radiograph`.

    `source` is the file's name, `archive.zip:folder/member.png` inside an archive; ids come from the last part of it.
    """
    check_bytes(len(data))
    inside = _IN_ARCHIVE.fullmatch(source)
    name = PurePosixPath(inside["member"] if inside else source).stem
    return _read(data, source=source, name=name, modalities=modalities)


def open_dicom_bytes(data: bytes) -> DecodedDicom:
    """Decode a DICOM radiograph, of the default modalities, whose data set is needed besides; ImageError otherwise."""
    check_bytes(len(data))
    with _damage_named("DICOM"):
        return open_dicom(data, modalities=DEFAULT_MODALITIES)


def _read(data: bytes, *, source: str, name: str, modalities: Collection[str]) -> Radiograph:
    kind = _recognise(data)
    with _damage_named(kind.upper()):
        if kind == "dicom":
            return decode_dicom(data, image_id=name, source=source, modalities=modalities)
        raster = decode_png(data) if kind == "png" else decode_jpeg(data)
    return _from_raster(raster, name=name, source=source, kind=kind)


@contextlib.contextmanager
def _damage_named(label: str) -> Iterator[None]:
    """Turn whatever a library raises into an ImageError, and let it warn nobody.

    Libraries warn of all that is unusual in a file. What matters of it ends in an ImageError or in the map.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageError as error:
            raise ImageError(printable(str(error))) from None
        except Exception:  # on damaged bytes the libraries raise anything from SyntaxError to RecursionError
            raise ImageError(f"it is damaged or cut short and cannot be read as {label}") from None


def _recognise(data: bytes) -> Literal["png", "jpeg", "dicom"]:
    if not data:
        raise ImageError("it is empty")
    if data.startswith(PNG_SIGNATURE):
        return "png"
    if data.startswith(JPEG_SIGNATURE):
        return "jpeg"
    if is_dicom(data):
        return "dicom"
    raise ImageError("it is not a PNG, JPEG or DICOM file")


def _from_raster(raster: Raster, *, name: str, source: str, kind: Literal["png", "jpeg"]) -> Radiograph:
    intensity = IntensityMap(low=0, high=2**raster.bit_depth - 1, photometric=raster.mode)
    nih = _NIH_NAME.fullmatch(name)
    return Radiograph(
        pixels=map_stored(raster.stored, intensity),
        bit_depth=raster.bit_depth,
        image_id=name,
        patient_id=nih[1] if nih else None,
        source=source,
        format=kind,
        intensity=intensity,
        colour=raster.colour,
    )
