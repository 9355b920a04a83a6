"""Small DICOM files, built for the tests."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian

from veilray.images.radiograph import Radiograph
from veilray.images.read import read_radiograph_bytes

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
DX_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
INSTANCE = "1.2.826.0.1.3680043.8.498.1"


def build(values: np.ndarray, *, bits: int | None = None, **elements: Any) -> Dataset:
    """A plain CR image of `values`, (H, W) of 8- or 16-bit integers; other elements as given, None to leave one out."""
    allocated = 8 * values.dtype.itemsize
    bits = bits or allocated
    dataset = Dataset()
    header = {
        "SOPClassUID": CR,
        "SOPInstanceUID": INSTANCE,
        "Modality": "CR",
        "PatientID": "P7",
        "ViewPosition": "PA",
        "Rows": values.shape[0],
        "Columns": values.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": allocated,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(values.dtype.kind == "i"),
        **elements,
    }
    for name, value in header.items():
        if value is not None:
            setattr(dataset, name, value)
    if "PixelData" not in elements:
        dataset.PixelData = values.tobytes() + bytes(values.nbytes % 2)
        dataset["PixelData"].VR = "OW" if allocated > 8 else "OB"
    return dataset


def save(dataset: Dataset, syntax: UID = ExplicitVRLittleEndian, *, preamble: bool = True) -> bytes:
    stream = io.BytesIO()
    if preamble:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", SECONDARY)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", INSTANCE)
        dcmwrite(stream, dataset, enforce_file_format=True)
    else:
        dcmwrite(stream, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return stream.getvalue()


def read(dataset: Dataset, syntax: UID = ExplicitVRLittleEndian, **options: Any) -> Radiograph:
    return read_radiograph_bytes(save(dataset, syntax), source="in/a.dcm", **options)


def compressed(frame: bytes, shape: tuple[int, int], *, bits: int = 8) -> Dataset:
    """An 8-bit CR image whose pixel data are `frame`, already compressed."""
    dataset = build(np.zeros(shape, np.uint8), bits=bits)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def ramp(bits: int, dtype: type = np.uint16) -> np.ndarray:
    low = -(2 ** (bits - 1)) if np.dtype(dtype).kind == "i" else 0
    values = np.linspace(low, low + 2**bits - 1, 48).round().astype(dtype)
    return values.reshape(6, 8)
