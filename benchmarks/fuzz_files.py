"""DICOM files for `fuzz.py`: genuine ones, and what is done with mutated ones."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from veilray.images.read import read_radiograph_bytes

Mutate = Callable[[bytes, random.Random], bytes]
_SYNTAXES = (
    *(ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian),
    *(RLELossless, JPEGLSLossless, JPEG2000Lossless),
)
_HEADER = 1200
"""Bytes in which the elements before the pixels lie."""


def read_mutated_dicom(chance: random.Random, mutate: Mutate) -> bool:
    """Read a mutated DICOM file; nothing tells an altered one from a genuine one, so what comes out is an image."""
    data = _dicom(chance.choice(_SYNTAXES))
    match chance.randrange(3):
        case 0:
            changed = mutate(data, chance)
        case 1:
            changed = data[:132] + mutate(data[132:_HEADER], chance) + data[_HEADER:]
        case _:
            changed = _with_strange_element(data, chance)
    pixels = read_radiograph_bytes(changed, source="case.dcm").pixels
    assert pixels.dtype == np.float32
    assert float(pixels.min()) >= 0
    assert float(pixels.max()) <= 1
    return True


_STRANGE_NUMBERS = (0, 1, 2, 7, 8, 12, 16, 17, 255, 32_767, 65_535)
_STRANGE_TEXTS = ("", "0", "-1", "1e308", "-1e308", "nan", "1e-308", "9" * 12, "A" * 16, "\\\\", "0\\1\\2\\3")


def _with_strange_element(data: bytes, chance: random.Random) -> bytes:
    """One element before the pixels replaced by another value, or dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dcmread(io.BytesIO(data))
        element = chance.choice([element for element in dataset if element.tag < 0x7FE0_0000])
        if chance.random() < 0.2:
            del dataset[element.tag]
        elif element.VR == "US":
            element.value = chance.choice(_STRANGE_NUMBERS)
        else:
            dataset.add_new(element.tag, "LO", chance.choice(_STRANGE_TEXTS))  # of any length, unchecked
        stream = io.BytesIO()
        dcmwrite(stream, dataset)
    return stream.getvalue()


@cache
def _dicom(syntax: UID) -> bytes:
    """A small 12-bit CR image in a transfer syntax."""
    values = np.random.default_rng(3).integers(0, 4096, (72, 80)).astype(np.uint16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.826.0.1.3680043.10.1000.9"
    dataset.Modality, dataset.PatientID, dataset.ViewPosition = "CR", "P7", "PA"
    dataset.PatientAge, dataset.StudyDate, dataset.BurnedInAnnotation = "058Y", "20200102", "NO"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *values.shape, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelPaddingValue = "1", "0", 0
    dataset.WindowCenter, dataset.WindowWidth, dataset.ImagerPixelSpacing = "2048", "4096", ["0.2", "0.2"]
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()
