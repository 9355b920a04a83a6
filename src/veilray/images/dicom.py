"""DICOM radiographs: which are accepted, and the map from stored values to [0, 1]."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from veilray.errors import ImageError
from veilray.images.dicom_pixels import StoredPixels, decode_pixels
from veilray.images.header import acquisition_of, printable, text, view_of
from veilray.images.limits import MAX_FILE_BYTES, check_bytes
from veilray.images.radiograph import FloatImage, IntensityMap, Radiograph, map_stored

if TYPE_CHECKING:
    from pydicom import Dataset

DEFAULT_MODALITIES = frozenset({"CR", "DX", "RG"})
"""Modalities (0008,0060) of projection radiographs."""

# PS3.4 B.5. Other classes are read only where the caller asks for their modality.
_RADIOGRAPHS = {
    "1.2.840.10008.5.1.4.1.1.1",  # Computed Radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # Digital X-Ray, For Presentation
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
}
_FOR_PROCESSING = {
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # Digital X-Ray
    "1.2.840.10008.5.1.4.1.1.1.2.1",  # Digital Mammography
    "1.2.840.10008.5.1.4.1.1.1.3.1",  # Digital Intra-Oral
}


@dataclass(frozen=True, kw_only=True)
class DecodedDicom:
    """A DICOM radiograph with all that was read of it."""

    dataset: Dataset
    stored: StoredPixels
    pixels: FloatImage
    """(H, W), float32, [0, 1]."""
    intensity: IntensityMap


def is_dicom(data: bytes) -> bool:
    """Whether a file is DICOM: the prefix of PS3.10 7.1, or a data set that starts without one as old writers do."""
    if data[128:132] == b"DICM":
        return True
    if len(data) < 8 or data[:2] not in (b"\x02\x00", b"\x08\x00") or data[3] != 0:
        return False
    # The first element then is short: a file meta group length, an identifying group length, a UID, a code.
    (explicit,), (implicit,) = struct.unpack_from("<H", data, 6), struct.unpack_from("<I", data, 4)
    return min(int(explicit), int(implicit)) < 256


def decode_dicom(data: bytes, *, image_id: str, source: str, modalities: Collection[str]) -> Radiograph:
    """Read a DICOM file; `image_id` is used where it has no SOP Instance UID. ImageError with the reason otherwise.

    Pixels are in [0, 1] by the declared range of stored values, after rescale and photometric interpretation, before
    any VOI transformation (PS3.4 N.2). The caller silences warnings.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise ImageError("reading DICOM needs more packages: install Veilray with its extra 'dicom'") from None
    decoded = open_dicom(data, modalities=modalities)
    dataset = decoded.dataset
    return Radiograph(
        pixels=decoded.pixels,
        bit_depth=decoded.stored.bits,
        image_id=text(dataset, "SOPInstanceUID") or image_id,
        patient_id=_patient(dataset),
        source=source,
        format="dicom",
        intensity=decoded.intensity,
        modality=text(dataset, "Modality"),
        view=view_of(dataset),
        acquisition=acquisition_of(dataset),
    )


def open_dicom(data: bytes, *, modalities: Collection[str]) -> DecodedDicom:
    """Parse and decode a DICOM file, as `decode_dicom` does, for whoever goes on with its data set."""
    dataset = parse_dicom(data)
    check_kind(dataset, modalities)
    stored = decode_pixels(dataset)
    intensity = intensity_of(dataset, low=stored.low, high=stored.high, padding=stored.padding)
    pixels = map_stored(stored.stored, intensity)
    if stored.padded is not None:
        pixels[stored.padded] = 0.0
        intensity = replace(intensity, padded_pixels=int(stored.padded.sum()))
    return DecodedDicom(dataset=dataset, stored=stored, pixels=pixels, intensity=intensity)


def parse_dicom(data: bytes) -> Dataset:
    """The data set of a DICOM file, its transfer syntax guessed where the file does not say; pixels are not decoded.

    ImageError for a deflated data set that is cut short or too large; pydicom's own errors for other damage.
    """
    from pydicom import dcmread
    from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    stream = io.BytesIO(data)
    read_preamble(stream, force=True)
    meta = _read_file_meta_info(stream)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        # dcmread would inflate without a bound: half a gigabyte of zeros is half a megabyte deflated.
        body = io.BytesIO(_inflate(data[stream.tell() :]))
        dataset = read_dataset(body, is_implicit_VR=False, is_little_endian=True)
        dataset.file_meta = meta
        return dataset
    dataset = dcmread(io.BytesIO(data), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset


def _inflate(deflated: bytes) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(deflated, MAX_FILE_BYTES + 1)
    check_bytes(len(inflated))
    if not stream.eof:
        raise ImageError("its deflated data set is cut short")
    return inflated


def check_kind(dataset: Dataset, modalities: Collection[str]) -> None:
    """Refuse what is not a finished, single, greyscale projection radiograph, with the reason."""
    from pydicom.uid import UID

    modality = text(dataset, "Modality")
    if modality not in modalities:
        wanted = ", ".join(sorted(modalities))
        raise ImageError(f"its modality is {modality or 'not given'}; accepted are {wanted}")
    sop_class = text(dataset, "SOPClassUID")
    if sop_class in _FOR_PROCESSING or text(dataset, "PresentationIntentType") == "FOR PROCESSING":
        raise ImageError("it is For Processing: raw detector values, not a picture; export it For Presentation")
    if sop_class and modality in DEFAULT_MODALITIES and sop_class not in _RADIOGRAPHS:
        raise ImageError(f"its SOP class is {UID(sop_class).name}, not a single radiograph")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"it has {frames} frames; only single images are read")
    photometric, samples = text(dataset, "PhotometricInterpretation"), int(dataset.get("SamplesPerPixel") or 1)
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or samples != 1:
        raise ImageError(
            f"its photometric interpretation is {photometric or 'not given'} with {samples} samples a pixel; "
            "only MONOCHROME1 and MONOCHROME2 with one are read"
        )
    _check_look_up_tables(dataset, photometric)


def _check_look_up_tables(dataset: Dataset, photometric: str) -> None:
    if dataset.get("ModalityLUTSequence"):
        raise ImageError("it has a Modality LUT (0028,3000), a table in place of an affine rescale, which is not read")
    if dataset.get("PresentationLUTSequence"):
        raise ImageError("it has a Presentation LUT Sequence (2050,0010), a table which is not read")
    # PS3.3 C.11.6.1.2 and the DX Image Module (C.8.11.3) bind INVERSE to MONOCHROME1 and IDENTITY to MONOCHROME2: the
    # pair says one inversion once. Files that contradict themselves exist and viewers differ on which half they
    # believe, so neither is guessed: an inverted radiograph would pass unseen.
    shape = text(dataset, "PresentationLUTShape")
    expected = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    if shape not in ("", expected):
        raise ImageError(
            f"its Presentation LUT Shape is {shape} while its photometric interpretation is {photometric}, which "
            f"asks for {expected}; which one holds is unknown, so correct the header"
        )


def intensity_of(dataset: Dataset, *, low: int, high: int, padding: tuple[int, int] | None) -> IntensityMap:
    """The map between stored values in [`low`, `high`] and pixels in [0, 1]; ImageError where there is no way back."""
    slope, intercept = (
        float(default if dataset.get(name) in (None, "") else dataset.get(name))
        for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        raise ImageError(f"its rescale, {slope:g} * stored + {intercept:g}, has no way back")
    photometric = text(dataset, "PhotometricInterpretation")
    # The map's range is the rescaled range of stored values, so an affine rescale cancels out of it; only the sign of
    # the slope stays, since photometric interpretation speaks of rescaled values (PS3.3 C.7.6.3.1.2).
    return IntensityMap(
        low=low,
        high=high,
        inverted=(photometric == "MONOCHROME1") != (slope < 0),
        slope=slope,
        intercept=intercept,
        photometric=photometric,
        voi=_voi(dataset),
        padding=padding,
        overlays=sum(1 for group in range(0x6000, 0x6020, 2) if (group, 0x0010) in dataset),
    )


def _voi(dataset: Dataset) -> str:
    """Windows as centre/width and function, tables as descriptor and digest, separated by semicolons."""
    parts = []
    centres, widths, names = (
        _values(dataset, name) for name in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation")
    )
    function = text(dataset, "VOILUTFunction") or "LINEAR"
    for index, (centre, width) in enumerate(zip(centres, widths, strict=False)):
        name = f" ({names[index]})" if index < len(names) else ""
        parts.append(f"window {float(centre):.10g}/{float(width):.10g} {function}{name}")
    for item in dataset.get("VOILUTSequence") or []:
        descriptor = ",".join(_values(item, "LUTDescriptor"))
        digest = hashlib.sha256(_table_bytes(item)).hexdigest()[:16]
        parts.append(f"table {descriptor} sha256 {digest}")
    return printable("; ".join(parts))


def _table_bytes(item: Dataset) -> bytes:
    # LUT Data (0028,3006) is OW or US: bytes, or one number or several.
    table = item.get("LUTData")
    if isinstance(table, bytes):
        return table
    return b"".join(struct.pack("<H", int(value) & 0xFFFF) for value in _values(item, "LUTData"))


def _values(dataset: Dataset, name: str) -> list[str]:
    value = dataset.get(name)
    if value is None or value == "":
        return []
    return [str(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else [str(value)]


def _patient(dataset: Dataset) -> str | None:
    """Patient ID (0010,0020), with its issuer (0010,0021) as HL7 writes the pair, since two hospitals share numbers."""
    patient, issuer = text(dataset, "PatientID"), text(dataset, "IssuerOfPatientID")
    if not patient:
        return None
    return f"{patient}^^^{issuer}" if issuer else patient
