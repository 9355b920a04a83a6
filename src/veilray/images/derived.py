"""A denoised radiograph as a DICOM object of its own, derived from the original (PS3.3 C.7.6.1.1)."""

from __future__ import annotations

import copy
import hashlib
import hmac
import io
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from veilray.errors import ImageError
from veilray.images.dicom import DEFAULT_MODALITIES, check_kind, intensity_of
from veilray.images.dicom_modules import KEPT, KEPT_OF_OVERLAYS
from veilray.images.dicom_pixels import StoredPixels, decode_pixels
from veilray.images.header import printable
from veilray.images.radiograph import FloatImage, restore_stored

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

TITLE = "DENOISED, RESEARCH, NOT FOR DIAGNOSIS"
"""What the Series Description (0008,103E) of every derived object begins with."""

IMPLEMENTATION_UID = "2.25.142158975168289426813972423911674182583"
"""Implementation Class UID (0002,0012) of Veilray, made from a random UUID (PS3.5 B.2)."""

_MAKER = "Veilray"
# Codes of PS3.16 annex D, with the context groups that list them.
_SOURCE_IMAGE = ("121322", "Source image for image processing operation")  # CID 7202
_SMOOTHING = ("113087", "Smoothing")  # CID 7203: the only code there for taking noise away
_PROCESSING = ("109102", "Processing Equipment")  # CID 7005
# Syntaxes that always lose something, and the standard that lost it (C.7.6.1.1.5.1).
_LOSSY_METHODS = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
}
# Those that may lose something, and did where the header says so.
_MAYBE_LOSSY_METHODS = {"1.2.840.10008.1.2.4.91": "ISO_15444_1", "1.2.840.10008.1.2.4.203": "ISO_15444_15"}
_SERIES_NUMBERS = 1000  # far enough from a scanner's own that both sort apart


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How an image was denoised: what the derived object says of its making."""

    veilray: str
    """Version of Veilray that denoised."""
    weights: str
    """SHA-256 of the file of weights, in hexadecimal."""
    settings: str
    """All that decides the result besides the weights, in one canonical line; part of what the new UIDs are made of."""
    description: str
    """What was done, in a sentence or two, for Derivation Description (0008,2111)."""
    when: datetime
    """When it was denoised, with a time zone."""


def derived_object(
    original: Dataset, pixels: FloatImage, *, provenance: Provenance, key: bytes, stored: StoredPixels | None = None
) -> Dataset:
    """The derived object of an original and its denoised pixels, (H, W), float32, [0, 1], ready to be encoded.

    The same patient, study, geometry, bit depth and photometric interpretation; stored values through the original's
    own map and back, padding as it was. Series and instance UIDs are keyed hashes by `key` of the original's UIDs, the
    weights and the settings: whoever makes the object again makes the same one. `stored`: the original's pixels, where
    they were decoded already. ImageError where the original is no radiograph, cannot be decoded, lacks a UID, or has
    another size than the pixels. The caller silences warnings.
    """
    try:
        check_kind(original, DEFAULT_MODALITIES)
        return _derive(original, stored or decode_pixels(original), pixels, provenance, key)
    except ImageError:
        raise
    except Exception:  # pydicom raises anything at all on damaged elements
        raise ImageError("its header is damaged, so nothing can be derived from it") from None


def _derive(original: Dataset, stored: StoredPixels, pixels: FloatImage, provenance: Provenance, key: bytes) -> Dataset:
    for name in ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not original.get(name):
            raise ImageError(f"it has no {name}, so nothing can be derived from it by reference")
    if pixels.shape != stored.stored.shape:
        raise ImageError(
            f"the denoised image has {pixels.shape[1]} x {pixels.shape[0]} pixels and the original "
            f"{stored.stored.shape[1]} x {stored.stored.shape[0]}: only images of native size can be attached"
        )
    derived = _copied(original)
    _set_pixels(derived, _cells(original, stored, pixels), stored)
    _set_compression(derived, original)
    _set_identity(derived, original, provenance, key)
    _set_derivation(derived, original, provenance)
    _set_meta(derived, provenance)
    return derived


def encode_dicom(dataset: Dataset) -> bytes:
    """A derived object as the bytes of a DICOM file (PS3.10 7); ImageError where its values cannot be written."""
    from pydicom import dcmwrite

    stream = io.BytesIO()
    try:
        dcmwrite(stream, dataset, enforce_file_format=True)
    except Exception:  # pydicom raises anything at all on values that break their representation
        raise ImageError("its header holds values that cannot be written again") from None
    return stream.getvalue()


def is_derived(dataset: Dataset) -> bool:
    """Whether a data set was made by `derived_object`: a derived image with Veilray among its processing equipment."""
    kind = dataset.get("ImageType")
    values = kind if isinstance(kind, Sequence) and not isinstance(kind, str) else [kind]
    if not values or values[0] != "DERIVED":
        return False
    return any(
        item.get("Manufacturer") == _MAKER
        and any(code.get("CodeValue") == _PROCESSING[0] for code in item.get("PurposeOfReferenceCodeSequence") or [])
        for item in dataset.get("ContributingEquipmentSequence") or []
    )


def derived_uid(purpose: str, source: str, *, provenance: Provenance, key: bytes) -> UID:
    """A UID under 2.25 (PS3.5 B.2) from a keyed hash: 122 bits of HMAC-SHA-256 as a UUID of version 8 (RFC 9562)."""
    from pydicom.uid import UID

    name = "\0".join(["veilray derived", purpose, source, provenance.weights, provenance.settings])
    digest = hmac.digest(key, name.encode(), hashlib.sha256)[:16]
    bits = int.from_bytes(digest, "big") & ~(0xF << 76) & ~(0x3 << 62) | (0x8 << 76) | (0x2 << 62)
    return UID(f"2.25.{uuid.UUID(int=bits).int}")


def _copied(original: Dataset) -> Dataset:
    """The elements that still hold, without private ones at any depth."""
    from pydicom import Dataset
    from pydicom.datadict import keyword_for_tag

    derived = Dataset()
    for tag in original.keys():  # noqa: SIM118 - iterating over a data set would convert every element
        overlay = 0x6000 <= tag.group <= 0x601E and tag.group % 2 == 0
        if tag.is_private or not (
            tag.element in KEPT_OF_OVERLAYS and _is_plane(original, tag.group)
            if overlay
            else keyword_for_tag(tag) in KEPT
        ):
            continue
        try:
            element = original[tag]
            derived[tag] = copy.deepcopy(element) if element.VR == "SQ" else copy.copy(element)
        except Exception:  # a value that cannot be converted raises anything
            raise ImageError(f"its element {tag} is damaged, so it cannot go into a derived object") from None
    derived.remove_private_tags()
    return derived


def _is_plane(original: Dataset, group: int) -> bool:
    """Whether an overlay lies in a plane of its own; those in unused bits of the pixels (retired) are not kept."""
    return (group, 0x3000) in original and int(original[group, 0x0102].value if (group, 0x0102) in original else 0) == 0


def _cells(original: Dataset, stored: StoredPixels, pixels: FloatImage) -> npt.NDArray[np.integer[Any]]:
    """Pixel cells of the denoised image; padding keeps the cells it had, and nothing else becomes padding."""
    intensity = intensity_of(original, low=stored.low, high=stored.high, padding=stored.padding)
    values = restore_stored(pixels, intensity)
    if stored.padding is not None and stored.padded is not None:
        values = np.where(stored.padded, stored.cells, _outside(values, stored))
    return values.astype(stored.cells.dtype)


def _outside(values: npt.NDArray[np.int32], stored: StoredPixels) -> npt.NDArray[np.int32]:
    """Values that would read as padding, moved to the nearest that does not."""
    assert stored.padding is not None
    first, last = stored.padding
    free = [value for value in (first - 1, last + 1) if stored.low <= value <= stored.high]
    if not free:
        return values
    nearest = np.where(np.abs(values - free[0]) <= np.abs(values - free[-1]), free[0], free[-1])
    return np.where((values >= first) & (values <= last), nearest, values).astype(np.int32)


def _set_pixels(derived: Dataset, cells: npt.NDArray[np.integer[Any]], stored: StoredPixels) -> None:
    data = cells.astype(cells.dtype.newbyteorder("<")).tobytes()
    derived.add_new("PixelData", "OB" if cells.dtype.itemsize == 1 else "OW", data + bytes(len(data) % 2))
    # Of the picture itself: padding may lie outside the bits stored.
    shown = cells if stored.padded is None or stored.padded.all() else cells[~stored.padded]
    kind = "SS" if cells.dtype.kind == "i" else "US"
    derived.add_new("SmallestImagePixelValue", kind, int(shown.min()))
    derived.add_new("LargestImagePixelValue", kind, int(shown.max()))


def _set_compression(derived: Dataset, original: Dataset) -> None:
    """What was lost once stays lost (C.7.6.1.1.5), also where the source's header forgot to say so."""
    syntax = str(original.file_meta.TransferSyntaxUID)
    said = original.get("LossyImageCompression") == "01"
    if syntax not in _LOSSY_METHODS and not said:
        return
    derived.LossyImageCompression = "01"
    method = _LOSSY_METHODS.get(syntax) or _MAYBE_LOSSY_METHODS.get(syntax)
    if method is None:
        return  # lost before it was stored as it is: how, and how much, only the header can say
    if not original.get("LossyImageCompressionMethod"):
        derived.LossyImageCompressionMethod = method
    if not original.get("LossyImageCompressionRatio"):
        plain = int(original.Rows) * int(original.Columns) * int(original.BitsAllocated) // 8
        derived.LossyImageCompressionRatio = f"{plain / len(original.PixelData):.4g}"


def _set_identity(derived: Dataset, original: Dataset, provenance: Provenance, key: bytes) -> None:
    kind = original.get("ImageType")
    values = list(kind) if isinstance(kind, Sequence) and not isinstance(kind, str) else []
    derived.ImageType = ["DERIVED", "SECONDARY", *values[2:]]
    series, instance = str(original.SeriesInstanceUID), str(original.SOPInstanceUID)
    derived.SeriesInstanceUID = derived_uid("series", series, provenance=provenance, key=key)
    derived.SOPInstanceUID = derived_uid("instance", instance, provenance=provenance, key=key)
    described = printable(str(original.get("SeriesDescription") or "")).replace("\\", " ").strip()
    derived.SeriesDescription = (f"{TITLE}: {described}" if described else TITLE)[:64].strip()
    number = original.get("SeriesNumber")
    derived.SeriesNumber = None if number in (None, "") else int(number) + _SERIES_NUMBERS
    when = _in_zone(provenance.when, original)
    derived.SeriesDate = derived.InstanceCreationDate = when.strftime("%Y%m%d")
    derived.SeriesTime = derived.InstanceCreationTime = when.strftime("%H%M%S")


def _in_zone(when: datetime, original: Dataset) -> datetime:
    """`when` in the zone that all times of the data set are in (0008,0201), else in the machine's."""
    try:
        return when.astimezone(datetime.strptime(str(original.get("TimezoneOffsetFromUTC")), "%z").tzinfo)
    except ValueError:
        return when.astimezone()


def _set_derivation(derived: Dataset, original: Dataset, provenance: Provenance) -> None:
    from pydicom import Dataset

    source = Dataset()
    source.ReferencedSOPClassUID = original.SOPClassUID
    source.ReferencedSOPInstanceUID = original.SOPInstanceUID
    source.PurposeOfReferenceCodeSequence = [_code(_SOURCE_IMAGE)]
    derived.SourceImageSequence = [source]
    before = str(original.get("DerivationDescription") or "").strip()
    text = f"{provenance.description} Research only, not for diagnosis."
    derived.DerivationDescription = (f"{text} Before that: {before}" if before else text)[:1024]
    derived.DerivationCodeSequence = [*(derived.get("DerivationCodeSequence") or []), _code(_SMOOTHING)]
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code(_PROCESSING)]
    equipment.Manufacturer = _MAKER
    equipment.ManufacturerModelName = "Veilray denoiser"
    equipment.SoftwareVersions = [f"veilray {provenance.veilray}", provenance.weights]
    equipment.ContributionDateTime = provenance.when.strftime("%Y%m%d%H%M%S%z")
    equipment.ContributionDescription = f"Denoised by the network with weights of SHA-256 {provenance.weights}"
    derived.ContributingEquipmentSequence = [*(derived.get("ContributingEquipmentSequence") or []), equipment]


def _code(code: tuple[str, str]) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code[0], "DCM", code[1]
    return item


def _set_meta(derived: Dataset, provenance: Provenance) -> None:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = derived.SOPClassUID
    meta.MediaStorageSOPInstanceUID = derived.SOPInstanceUID
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = f"VEILRAY_{provenance.veilray.replace('.', '_')}"[:16]
    derived.file_meta = meta
