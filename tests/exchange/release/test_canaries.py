"""Canaries in every place of a file where something may hide: none of them in what leaves or in what is said."""

from __future__ import annotations

import base64
import csv
import io
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicognito.anonymizer import Anonymizer
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import DicomDictionary
from pydicom.dataset import FileMetaDataset
from pydicom.uid import JPEGBaseline8Bit
from tests.command_line import Finished, done, veilray
from tests.exchange.release.confidential_tags import CONFIDENTIAL, ELSEWHERE
from tests.images.dicom_files import build, compressed, save

from veilray.exchange.keys.folder import KeyFolder

MARK = "CNRYBIRD"
"""In every canary that may be text; the others are numbers, dates and UIDs, listed one by one. With a tag it is as long
as an application entity's title may be."""

# What decides whether a file is read at all, or how its pixels are; and group lengths, which writers drop.
_NEEDED = {
    *("SOPClassUID", "Modality", "PhotometricInterpretation", "PresentationLUTShape", "PresentationIntentType"),
    *("NumberOfFrames", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "PresentationLUTSequence"),
    *("VOILUTSequence", "VOILUTFunction", "SpecificCharacterSet", "PixelData", "WindowCenter", "WindowWidth"),
    *("FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("PixelDataProviderURL", "PixelPaddingValue", "PixelPaddingRangeLimit"),
}
# Binary numbers, one for each representation: they would show in decimal, and those of 8 bytes as they are.
_NUMBERS: dict[str, tuple[int | float, str]] = {
    "US": (61_331, "<H"),
    "SS": (-31_337, "<h"),
    "UL": (3_133_731_337, "<I"),
    "SL": (-1_733_713_371, "<i"),
    "UV": (13_373_133_731_337_313, "<Q"),
    "SV": (-13_373_133_731_337_313, "<q"),
    "FL": (31_337.25, "<f"),
    "FD": (731_337.125, "<d"),
}
_TEXTS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
_BYTES = {"OB", "OB or OW", "OW", "UN", "OD", "OF", "OL", "OV"}


def _value(vr: str, tag: int) -> tuple[Any, str] | None:
    """A value of that representation and the canary to look for in it; None for what holds no free value."""
    number = tag % 10**9
    if vr in _TEXTS:
        return (text := f"{MARK}{tag:08X}"), text
    if vr in _BYTES:
        return f"{MARK}{tag:08X}".encode(), f"{MARK}{tag:08X}"
    match vr:
        case "UI":
            return (text := f"1.2.99.{tag}.71"), text
        case "DA":
            return (text := f"{1801 + number % 90}{1 + number % 12:02}{1 + number % 28:02}"), text
        case "DT":
            return (text := f"18{number % 90 + 10}0101235959.{number % 10**6:06}"), text
        case "TM":
            return (text := f"235959.{number % 10**6:06}"), text
        case "DS":
            return (text := f"0.17{number:09}"), text
        case "IS":
            return str(1_000_000_000 + number), str(1_000_000_000 + number)
        case "AS":
            return "071Y", "071Y"
        case "AT":
            return 0x3133_7313, "31337313"
    return (_NUMBERS[vr][0], "") if vr in _NUMBERS else None


def _seed(dataset: Dataset) -> list[str]:
    """Put a canary into every element of the data dictionary, sequences included; those that the data set has and whose
    value decides how its pixels are keep it."""
    canaries = []
    for tag, (vr, multiplicity, _, _, keyword) in DicomDictionary.items():
        if tag < 0x0008_0000 or not keyword or keyword in _NEEDED:
            continue
        if vr == "SQ":
            dataset.add_new(tag, "SQ", [_item(tag)])
            continue
        vr = vr.split()[0]
        drawn = _value(vr, tag)
        there = keyword in dataset and vr not in _TEXTS | {"UI"} and tag not in CONFIDENTIAL
        if drawn is None or there:
            continue
        several = vr in _NUMBERS and multiplicity[0] in "3468"
        dataset.add_new(tag, vr, [drawn[0]] * int(multiplicity[0]) if several else drawn[0])
        canaries += [drawn[1]] if drawn[1] else []
    block = dataset.private_block(0x0009, f"{MARK} private", create=True)
    block.add_new(0x01, "LO", f"{MARK} private")
    block.add_new(0x02, "FD", _NUMBERS["FD"][0])
    for group in (0x5000, 0x501E, 0x6000, 0x601E):
        dataset.add_new((group << 16) | 0x0022, "LO", f"{MARK} overlay")
        dataset.add_new((group << 16) | 0x3000, "OW", f"{MARK} overlay plane".encode() + b"\0")
        dataset.add_new((group << 16) | 0x4000, "LT", f"{MARK} overlay comment")
    return canaries


def _item(tag: int) -> Dataset:
    """An item of a sequence, with another in it."""
    inner, outer = Dataset(), Dataset()
    inner.PersonName, inner.FloatingPointValue = f"{MARK}{tag:08X}", _NUMBERS["FD"][0]
    outer.PatientComments, outer.ReferencedPatientSequence = f"{MARK}{tag:08X}", [inner]
    return outer


def _dicom(folder: Path, number: int, *, jpeg: bool = False) -> list[str]:
    pixels = np.random.default_rng(number).integers(100, 140, (64, 64), dtype=np.uint8)
    dataset = compressed(_jpeg(pixels), pixels.shape) if jpeg else build(pixels)
    # The whole dictionary in two files; the others make up the numbers that let fields leave at all.
    canaries = _seed(dataset) if number in (0, 9) else []
    # Spacings that differ where it must not show in the release.
    dataset.SOPInstanceUID = f"1.2.99.123456789.{number}"
    dataset.PatientID = f"{MARK}{number}"
    dataset.PatientAge, dataset.PatientSex, dataset.ViewPosition = "063Y", "F", "PA"
    spacing = f"{12_345_678_901 + number}"
    dataset.ImagerPixelSpacing = [f"0.143{spacing}", f"0.143{spacing}"]
    dataset.BurnedInAnnotation = "NO"
    canaries += [dataset.SOPInstanceUID, spacing, "063Y"]
    data = save(dataset, JPEGBaseline8Bit) if jpeg else _with_meta(dataset)
    (folder / f"{MARK}file{number}.dcm").write_bytes(data)
    return canaries


def _with_meta(dataset: Dataset) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, "1.2.99.5.71"
    meta.ImplementationClassUID, meta.ImplementationVersionName = "1.2.99.6.71", f"{MARK}META"
    meta.SourceApplicationEntityTitle = f"{MARK}AE"
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = "1.2.99.7.71", f"{MARK} meta".encode() + b"\0"
    dataset.file_meta, dataset.preamble = meta, (MARK * 16).encode()
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = f"{MARK} exif"
    Image.fromarray(pixels).save(stream, "JPEG", comment=f"{MARK} comment", exif=exif)
    return stream.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    info = PngInfo()
    info.add_text("Comment", f"{MARK} text")
    info.add_text("Packed", f"{MARK} packed", zip=True)
    info.add_itxt("Patient", f"{MARK} international")
    info.add(b"prIv", f"{MARK} private".encode())
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=info)
    data = stream.getvalue() + f"{MARK} after the end".encode()
    time = struct.pack(">IHBBBBB", 7, 1837, 5, 17, 3, 4, 5)
    chunk = time[:4] + b"tIME" + time[4:]
    return data[:33] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + data[33:]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A cohort of 12 patients' DICOM, JPEG and PNG files full of canaries, the numeric ones, and what import said."""
    folder = tmp_path_factory.mktemp("canaries")
    source = folder / f"{MARK}folder"
    source.mkdir()
    canaries = [canary for number in range(9) for canary in _dicom(source, number)]
    canaries += _dicom(source, 9, jpeg=True)
    one, other = (np.random.default_rng(seed).integers(100, 140, (64, 64), dtype=np.uint8) for seed in (20, 21))
    (source / f"{MARK}a.png").write_bytes(_png(one))
    (source / f"{MARK}b.jpg").write_bytes(_jpeg(other))
    (source / f"{MARK}broken.dcm").write_bytes(b"DICM" * 40)
    said = done("import", source, "--out", folder / "cohort", "--size", "native", "--workers", 1)
    assert "12 images of 12 patients" in said.out
    return folder / "cohort", sorted(set(canaries)), said.out + said.err


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Keys of Site One that know site two."""
    one = KeyFolder.create(tmp_path / "keys", name="one")
    one.pin(KeyFolder.create(tmp_path / "two", name="two", role="site-two").card)
    return tmp_path / "keys"


def _shapes(canary: str) -> Iterator[bytes]:
    """A canary as it stands, in UTF-16, in hexadecimal, and inside base64 at each of its three phases."""
    raw = canary.encode()
    yield from (raw, raw.lower(), canary.encode("utf-16-le"), canary.encode("utf-16-be"))
    yield from (raw.hex().encode(), raw.hex().upper().encode())
    for phase in range(3):
        encoded = base64.b64encode(b"\0" * phase + raw + b"\0\0")
        # Without the characters that also hang on what stands before and after.
        inner = encoded[-(-8 * phase // 6) : (8 * (phase + len(raw))) // 6]
        if len(inner) >= 4:
            yield inner


# Names and digests, drawn anew each time: any few digits come up in them.
_DRAWN = re.compile(rb"(?<![0-9a-f])([0-9a-f]{16}|[0-9a-f]{32}|[0-9a-f]{64})(?![0-9a-f])")
# Bytes from which on a shape does not come up in noise by itself.
_LEAST_IN_NOISE = 8


def _found(content: bytes, canaries: list[str], *, noise: bytes = b"") -> list[str]:
    """The canaries in a content, and in noise beside it, where those of a few bytes are not looked for."""
    undrawn = _DRAWN.sub(b" ", content)

    def told(shape: bytes) -> bool:
        where = undrawn if shape.isdigit() and len(shape) <= 8 else content
        return shape in where or (len(shape) >= _LEAST_IN_NOISE and shape in noise)

    return [canary for canary in canaries if any(told(shape) for shape in _shapes(canary))]


def _numbers_in(said: str, release: Path | None) -> list[str]:
    """Binary numbers that were told in decimal, or stand in a file; of 2 and 4 bytes not looked for among pixels."""
    files = [] if release is None else sorted(release.rglob("*.*"))
    texts = [said, *(path.read_text() for path in files if path.suffix in (".json", ".csv"))]
    texts = [_DRAWN.sub(b" ", text.encode()).decode() for text in texts]
    found = []
    for vr, (number, code) in _NUMBERS.items():
        decimal = re.compile(rf"(?<![\d.]){re.escape(str(number))}(?!\d)")
        if any(decimal.search(text) for text in texts):
            found.append(vr)
        raw = struct.pack(code, number)
        places = [path.read_bytes() for path in files if path.suffix != ".npy" or len(raw) == 8]
        if len(raw) >= 4 and any(raw in content for content in places):
            found.append(f"{vr}, raw")
    return found


def _all_bytes(folder: Path) -> tuple[bytes, bytes]:
    """Names and contents of all files, and the noisy pixels, which are apart from their files' headers."""
    content, pixels = [], []
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes()
        # NPY 1.0: ten bytes, the last two of which are the length of what the header says.
        header = 10 + int.from_bytes(data[8:10], "little") if path.suffix == ".npy" else len(data)
        content += [path.name.encode(), data[:header]]
        pixels.append(data[header:])
    return b"\n".join(content), b"\n".join(pixels)


def _secrets(cohort: Path) -> list[bytes]:
    """Digests of clean pixels and files, as bytes and as text."""
    with (cohort / "index.csv").open(newline="", encoding="utf-8") as stream:
        digests = [row["sha256"] for row in csv.DictReader(stream)]
    digests += re.findall(r"[0-9a-f]{64}", (cohort / "cohort.json").read_text())
    return [shape for text in digests for shape in (text.encode(), bytes.fromhex(text))]


def _check(said: Finished, release: Path | None, seeded: tuple[Path, list[str], str], *, clean: bool = False) -> None:
    cohort, canaries, _ = seeded
    content, pixels = (b"", b"") if release is None else _all_bytes(release)
    content += (said.out + said.err).encode()
    assert _found(content, [MARK, *canaries], noise=pixels) == []
    assert _numbers_in(said.out + said.err, release) == []
    if not clean:
        assert [secret for secret in _secrets(cohort) if secret in content or secret in pixels] == []


def test_the_search_finds_what_it_looks_for() -> None:
    for wrapped in (b"xx%s" % base64.b64encode(b"a%sCNRYb" % (b"z" * n)) for n in range(3)):
        assert _found(wrapped, ["CNRY"]) == ["CNRY"]
    assert _found("CNRY".encode("utf-16"), ["CNRY"])
    assert _found(b"434e5259", ["CNRY"])
    assert not _found(b"CNR Y", ["CNRY"])
    drawn = b"00ff" * 8
    for text in (b"18010203", b"day18010203", b"aa18010203bb99", b"18010203,%s" % drawn):
        assert _found(text, ["18010203"]), text
    assert _found(b"PatientAge 063Y".hex().encode(), ["063Y"])
    assert not _found(drawn[:12] + b"18010203" + drawn[:12], ["18010203"])


def test_the_search_finds_what_is_planted_in_a_release(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text(f"image_id,age\n{'00ff' * 8},063Y\n")
    pixels = np.zeros((2, 64), np.uint8)
    for row, planted in enumerate((f"{MARK}00100010".encode(), base64.b64encode(b"18010203"))):
        pixels[row, 3 : 3 + len(planted)] = list(planted)
    np.save(tmp_path / "noisy.npy", pixels)
    content, noise = _all_bytes(tmp_path)
    assert pixels.tobytes() in noise
    assert _found(content, ["063Y", "fortran_order", MARK, "18010203"]) == ["063Y", "fortran_order"]
    assert _found(b"", ["063Y", "fortran_order", MARK, "18010203"], noise=noise) == [MARK, "18010203"]
    assert _found(content, ["19010203"], noise=noise) == []


def test_the_search_finds_numbers(tmp_path: Path) -> None:
    assert _numbers_in("a 61331, b", None) == ["US"]
    assert _numbers_in("161331 or 613310", None) == []
    assert _numbers_in(f"a61331f {'00ff' * 8}", None) == ["US"]
    assert _numbers_in("00ff" * 6 + "61331fff", None) == []
    (tmp_path / "index.csv").write_text("a\n731337.125\n")
    (tmp_path / "noisy.npy").write_bytes(b"xx" + struct.pack("<Q", _NUMBERS["UV"][0]))
    assert _numbers_in("", tmp_path) == ["UV, raw", "FD"]


@pytest.mark.slow
def test_the_canaries_sit_in_all_that_the_basic_profile_names(seeded: tuple[Path, list[str], str]) -> None:
    missing = []
    dataset = dcmread(seeded[0].parent / f"{MARK}folder" / f"{MARK}file0.dcm")
    assert dataset.file_meta.MediaStorageSOPInstanceUID in seeded[1]
    known = {
        "PatientSex",
        "PatientAge",
        "ViewPosition",
    }  # which may leave, coded; SOPInstanceUID is one of the canaries
    for tag in sorted(CONFIDENTIAL - ELSEWHERE):
        element = dataset.get(tag)
        if element is None:
            missing.append(f"{tag:08X}")
        elif element.VR == "SQ":
            assert MARK in str(element.value[0]), element
        elif element.keyword not in known:
            text = element.value.decode() if isinstance(element.value, bytes) else str(element.value)
            numbers = {str(number) for number, _ in _NUMBERS.values()}
            assert any(canary in text for canary in (*seeded[1], MARK)) or text in numbers, element
    assert missing == []


def test_import_says_no_canary(seeded: tuple[Path, list[str], str]) -> None:
    _, canaries, said = seeded
    assert len(canaries) > 1000
    assert _found(said.encode(), [MARK, *canaries]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--no-clip", "--std", "0.1,0.3"],
        ["--seed", 12],
        ["--pairs", "--consent-clean-images"],
    ],
    ids=["noisy", "unclamped", "seeded", "pairs"],
)
def test_no_canary_leaves(seeded: tuple[Path, list[str], str], tmp_path: Path, options: list[object]) -> None:
    asked = ["--fields", "view,spacing,sex,age,days,study", *options]
    said = done("obfuscate", seeded[0], "--out", tmp_path / "release", *asked)
    _check(said, tmp_path / "release", seeded, clean="--pairs" in options)
    assert b"60-69" in (tmp_path / "release" / "index.csv").read_bytes()


@pytest.mark.slow
def test_no_canary_leaves_with_keys_or_in_a_refusal(
    seeded: tuple[Path, list[str], str], keys: Path, tmp_path: Path
) -> None:
    site = ["--keys", keys, "--receiver", "two"]
    _check(done("obfuscate", seeded[0], *site, "--dry-run"), None, seeded)
    _check(done("obfuscate", seeded[0], *site, "--out", tmp_path / "a"), tmp_path / "a", seeded)
    refused = veilray("obfuscate", seeded[0], *site, "--out", tmp_path / "b", "--std", "0.1")
    assert refused.status == 4
    _check(refused, None, seeded)
    for what in (("list", keys), ("list", keys, "--events"), ("history", keys, seeded[0])):
        _check(done("ledger", *what), None, seeded)
    assert _found((keys / "ledger.db").read_bytes(), [MARK, *seeded[1]]) == []


@pytest.mark.slow
def test_what_dicognito_would_change_does_not_survive(seeded: tuple[Path, list[str], str], tmp_path: Path) -> None:
    """What an independent de-identifier replaces or deletes, where it is long enough to look for."""
    done("obfuscate", seeded[0], "--out", tmp_path / "release", "--fields", "view,spacing,sex,age,days,study")
    content, pixels = _all_bytes(tmp_path / "release")
    before = dcmread(seeded[0].parent / f"{MARK}folder" / f"{MARK}file0.dcm")
    after = dcmread(seeded[0].parent / f"{MARK}folder" / f"{MARK}file0.dcm")
    # It cannot shift what is no time, and stops there.
    for keyword in [element.keyword for element in after if element.VR in ("DA", "TM", "DT")]:
        if keyword not in ("StudyDate", "SeriesDate", "AcquisitionDate", "PatientBirthDate"):
            delattr(after, keyword)
            delattr(before, keyword)
    Anonymizer().anonymize(after)
    changed = [element for element in before if element.VR != "SQ" and after.get(element.tag) != element]
    assert len(changed) > 30
    values = [str(element.value) for element in changed if element.VR not in _BYTES and len(str(element.value)) >= 6]
    assert _found(content, values, noise=pixels) == []
