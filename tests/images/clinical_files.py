"""Whole CR and DX objects as a modality would send them, built for the tests; no patient exists."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from tests.images.dicom_files import CR, DX, DX_FOR_PROCESSING, build

ROOT = "1.2.826.0.1.3680043.10.1000"
_STUDY = {
    "PatientName": "Doe^Jane",
    "PatientID": "P7",
    "IssuerOfPatientID": "WARD",
    "PatientBirthDate": "19500607",
    "PatientSex": "F",
    "PatientAge": "070Y",
    "StudyDate": "20200102",
    "StudyTime": "101112",
    "StudyID": "S1",
    "AccessionNumber": "A-17",
    "ReferringPhysicianName": "Who^Doctor",
    "StudyInstanceUID": f"{ROOT}.1",
    "SeriesInstanceUID": f"{ROOT}.2",
    "SeriesNumber": 1,
    "SeriesDescription": "Thorax p.a.",
    "InstanceNumber": 3,
    "Manufacturer": "Maker",
    "InstitutionName": "Hospital",
    "PatientOrientation": ["L", "F"],
    "AcquisitionDate": "20200102",
    "AcquisitionTime": "101010",
    "BodyPartExamined": "CHEST",
    "PixelSpacing": [0.2, 0.2],
    "BurnedInAnnotation": "NO",
}


def cr(values: np.ndarray, **elements: Any) -> Dataset:
    """A CR image; `values` as for `build`."""
    return _filed(build(values, **{**_STUDY, "SOPClassUID": CR, "SOPInstanceUID": f"{ROOT}.3", "KVP": 120} | elements))


def dx(values: np.ndarray, *, for_processing: bool = False, **elements: Any) -> Dataset:
    """A DX image, For Presentation unless said otherwise."""
    inverted = elements.get("PhotometricInterpretation") == "MONOCHROME1"
    header = {
        **_STUDY,
        "SOPClassUID": DX_FOR_PROCESSING if for_processing else DX,
        "SOPInstanceUID": f"{ROOT}.4",
        "Modality": "DX",
        "PresentationIntentType": "FOR PROCESSING" if for_processing else "FOR PRESENTATION",
        "ImageType": ["ORIGINAL", "PRIMARY", ""],
        "PixelSpacing": None,
        "ImagerPixelSpacing": [0.2, 0.2],
        "PixelIntensityRelationship": "LIN",
        "PixelIntensityRelationshipSign": -1 if inverted else 1,
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "RescaleType": "US",
        "PresentationLUTShape": "INVERSE" if inverted else "IDENTITY",
        "LossyImageCompression": "00",
        "ImageLaterality": "U",
        "DetectorType": "DIRECT",
        "AcquisitionContextSequence": [],
        "ViewCodeSequence": [_code("399348003", "SCT", "postero-anterior")],
        "PatientOrientationCodeSequence": [_code("10904000", "SCT", "erect")],
        "PositionerType": "",
        "AnatomicRegionSequence": [_code("816094009", "SCT", "Chest")],
        "WindowCenter": 2048,
        "WindowWidth": 4096,
        **elements,
    }
    return _filed(build(values, **header))


def table(entries: np.ndarray, *, first: int, bits: int) -> Dataset:
    """An item of VOI LUT Sequence (0028,3010)."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first, bits])
    item.LUTExplanation = "normal"
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def add_overlay(dataset: Dataset, group: int = 0x6000) -> None:
    """An overlay in a plane of its own, with the statistics of its region."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    for element, kind, value in (
        (0x0010, "US", rows),
        (0x0011, "US", columns),
        (0x0022, "LO", "marker"),
        (0x0040, "CS", "R"),
        (0x0050, "SS", [1, 1]),
        (0x0100, "US", 1),
        (0x0102, "US", 0),
        (0x1301, "IS", 12),
        (0x1302, "DS", "100.5"),
        (0x3000, "OW", bytes((rows * columns + 15) // 16 * 2 - 1) + b"\x01"),
    ):
        dataset.add_new((group, element), kind, value)


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _filed(dataset: Dataset) -> Dataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    return dataset
