"""Damaged bytes: whatever is flipped, only an ImageError comes out, soon, and nothing is printed or warned of."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless
from tests.images.dicom_files import build, compressed, save

from veilray.errors import ImageError, UsageError
from veilray.images.read import read_radiograph, read_radiograph_bytes

MUTATIONS = 300


def _encode(kind: str) -> bytes:
    stream = io.BytesIO()
    waves = 127 + 100 * np.outer(np.sin(np.arange(24) / 5), np.cos(np.arange(24) / 4))
    Image.fromarray(waves.astype(np.uint8)).save(stream, kind)
    return stream.getvalue()


def _dicom(syntax: UID) -> bytes:
    if syntax == JPEGBaseline8Bit:
        return save(compressed(_encode("JPEG"), (24, 24)), syntax)
    values = (np.arange(64 * 64, dtype=np.uint16) * 5 % 4096).reshape(64, 64)
    dataset = build(values, bits=12, WindowCenter=2048, WindowWidth=4096, RescaleSlope=1, RescaleIntercept=0)
    if syntax != ExplicitVRLittleEndian:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(syntax, generate_instance_uid=False)
    return save(dataset, syntax)


FILES = {
    "png": lambda: _encode("PNG"),
    "jpeg": lambda: _encode("JPEG"),
    "plain": lambda: _dicom(ExplicitVRLittleEndian),
    "jpeg-baseline": lambda: _dicom(JPEGBaseline8Bit),
    "rle": lambda: _dicom(RLELossless),
    "jpeg-ls": lambda: _dicom(JPEGLSLossless),
    "jpeg-2000": lambda: _dicom(JPEG2000Lossless),
}


def _survives(original: bytes, seed: int) -> int:
    """How many of MUTATIONS damaged copies were refused; anything but an ImageError fails the test by itself."""
    rng = np.random.default_rng(seed)
    refused = 0
    for index in range(MUTATIONS):
        data = bytearray(original)
        for place in rng.integers(0, len(data), int(rng.integers(1, 5))):
            data[place] = int(rng.integers(0, 256))
        if index % 3 == 0:
            del data[int(rng.integers(0, len(data))) :]
        started, reason = time.process_time(), ""
        try:
            radiograph = read_radiograph_bytes(bytes(data), source="damaged")
        except ImageError as error:
            refused, reason = refused + 1, str(error)
        else:
            assert radiograph.pixels.min() >= 0.0
            assert radiograph.pixels.max() <= 1.0
        assert reason.isprintable()
        assert time.process_time() - started < 5
    return refused


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_damage_is_refused_or_harmless(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    original = FILES[kind]()
    read_radiograph_bytes(original, source="whole")
    assert _survives(original, seed=len(original)) > MUTATIONS / 4
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_damaged_jpeg_lossless_is_refused_or_harmless(real_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # No encoder for it is at hand: a real file, damaged in its headers, where decoders go wrong.
    original = (real_data / "dicom" / "wg04_RG3_JPLL.dcm").read_bytes()
    rng = np.random.default_rng(0)
    start = original.index(b"\xff\xd8\xff")
    refused = 0
    for _ in range(40):
        data = bytearray(original)
        data[start + int(rng.integers(0, 120))] = int(rng.integers(0, 256))
        try:
            read_radiograph_bytes(bytes(data), source="damaged")
        except ImageError:
            refused += 1
    assert refused > 10
    assert capfd.readouterr() == ("", "")


def test_a_path_that_is_no_readable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_radiograph(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_radiograph(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not a regular file"):
        read_radiograph(tmp_path / "pipe")
    (tmp_path / "a.png").write_bytes(_encode("PNG"))

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    # The file's own permissions do not bind an administrator, who may be running these tests.
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ImageError, match="Permission denied"):
        read_radiograph(tmp_path / "a.png")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as stream:
        stream.truncate(10 * 1024**3)
    with pytest.raises(ImageError, match="larger than 512 MiB"):
        read_radiograph(path)
