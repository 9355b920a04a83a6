"""The story of two sites, in every release mode, by the commands of the guide (docs/how-to/two-sites.md)."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")
pytest.importorskip("pyrage")
pytest.importorskip("fastapi")

from PIL import Image
from pydicom import Dataset, dcmread
from tests.command_line import SMALL
from tests.end_to_end.sites import (
    BITS,
    SHAPE,
    Site,
    Sites,
    clean_pixels,
    leaks,
    names_and_numbers,
    readable,
    two_sites,
    write_ward,
)
from tests.exchange.sites import decrypted, members
from tests.images.clinical_files import cr
from tests.images.dicom_files import save

from veilray.cohort.release import Release
from veilray.exchange.keys.folder import KeyFolder

# The first test waits for the whole story, some thirty processes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRAIN = [
    *SMALL,
    "--set",
    "train.epochs=1",
    "--set",
    "train.learning_rate=0.01",
    "--set",
    "train.ema_decay=0.5",
    "--no-evaluate",
]
NOISY_WARD, PAIRS_WARD = 1, 2
OWN_ROOT = "1.2.826.0.1.3680043.10.815"
"""Of UIDs of Site Two's own images."""


@dataclass(frozen=True)
class Delivered:
    """A bundle that crossed, and the folder that it was opened into."""

    bundle: Path
    opened: Path


@dataclass(frozen=True)
class Ward:
    """Images of Site One, as they came from the archive and as a cohort."""

    images: dict[str, Dataset]
    cohort: Path


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    with two_sites(tmp_path_factory.mktemp("sites")) as found:
        yield found


@pytest.fixture(scope="module")
def noisy_ward(sites: Sites) -> Ward:
    return _import(sites.one, NOISY_WARD, patients=8)


@pytest.fixture(scope="module")
def pairs_ward(sites: Sites) -> Ward:
    """Of patients who have consented that their radiographs leave as they are."""
    return _import(sites.one, PAIRS_WARD, patients=10)


def _import(one: Site, ward: int, *, patients: int) -> Ward:
    images = write_ward(one.home / f"archive{ward}", ward, patients=patients)
    shares = ["--shares", "40/30/30", "--workers", 1]
    out = one.done("import", f"archive{ward}", "--out", f"cohort{ward}", "--size", "native", *shares)
    assert f"{len(images)} images of {patients} patients" in out
    return Ward(images, one.home / f"cohort{ward}")


def _release(sites: Sites, ward: Ward, name: str, *options: str) -> Delivered:
    for_centre = ["--keys", "keys", "--receiver", "centre", "--std", "0.2"]
    sites.one.done("obfuscate", ward.cohort.name, "--out", name, *for_centre, *options)
    bundle = sites.deliver(sites.one, name, f"{name}-to-centre")
    said = sites.two.done("open", _in(sites.two, bundle), "--out", name, "--keys", "keys")
    assert f"{name}: release from hospital" in said
    return Delivered(bundle, sites.two.home / name)


def _in(site: Site, path: Path) -> Path:
    return path.relative_to(site.home)


@pytest.fixture(scope="module")
def noisy(sites: Sites, noisy_ward: Ward) -> Delivered:
    return _release(sites, noisy_ward, "noisy")


@pytest.fixture(scope="module")
def pairs(sites: Sites, pairs_ward: Ward) -> Delivered:
    return _release(sites, pairs_ward, "pairs", "--pairs", "--consent-clean-images")


@pytest.fixture(scope="module")
def pairs_run(sites: Sites, pairs: Delivered) -> str:
    """A run of Site Two on the pairs that it opened."""
    sites.two.done("train", "default", "--data", pairs.opened.name, "--out", "run", *TRAIN)
    return "run"


@pytest.fixture(scope="module")
def returned(sites: Sites, noisy: Delivered, pairs_run: str) -> Delivered:
    """The noisy release, denoised at Site Two, back at Site One."""
    return _denoised_and_back(sites, noisy, pairs_run)


@pytest.fixture(scope="module")
def returned_pairs(sites: Sites, pairs: Delivered, pairs_run: str) -> Delivered:
    """The noisy images of the release of pairs, likewise."""
    return _denoised_and_back(sites, pairs, pairs_run)


def _denoised_and_back(sites: Sites, release: Delivered, run: str) -> Delivered:
    name = f"{release.opened.name}-denoised"
    sites.two.done("denoise", release.opened.name, "--out", name, "--model", run, "--device", "cpu")
    bundle = sites.deliver(sites.two, name, f"{name}-back")
    said = sites.one.done("open", _in(sites.one, bundle), "--out", name, "--keys", "keys")
    assert f"{name}: denoised from centre" in said
    return Delivered(bundle, sites.one.home / name)


@pytest.fixture(scope="module")
def derived(sites: Sites, returned: Delivered) -> list[Path]:
    """Derived DICOM objects at Site One."""
    return _reattached(sites, NOISY_WARD, returned)


@pytest.fixture(scope="module")
def derived_pairs(sites: Sites, returned_pairs: Delivered) -> list[Path]:
    """Those of the patients whose clean images left too."""
    return _reattached(sites, PAIRS_WARD, returned_pairs)


def _reattached(sites: Sites, ward: int, returned: Delivered) -> list[Path]:
    ours = ["--keys", "keys", "--receiver", "centre"]
    sites.one.done("denoise", returned.opened.name, "--reattach", f"archive{ward}", "--out", f"derived{ward}", *ours)
    return sorted((sites.one.home / f"derived{ward}").iterdir())


@pytest.fixture(scope="module")
def own_derived(sites: Sites, model: Delivered) -> list[Path]:
    """Site Two's own images, denoised by Site One's model where they are; its UIDs come from keys of its own."""
    (sites.two.home / "own").mkdir()
    for number in range(2):
        values = np.random.default_rng(number).integers(0, 4096, SHAPE).astype(np.uint16)
        uids = {"SOPInstanceUID": f"{OWN_ROOT}.3.{number}", "SeriesInstanceUID": f"{OWN_ROOT}.2"}
        image = cr(values, bits=BITS, PatientID="own-1", StudyInstanceUID=f"{OWN_ROOT}.1", **uids)
        (sites.two.home / f"own/{number}.dcm").write_bytes(save(image))
    sites.two.done("keygen", "--out", "keys-of-the-ward", "--name", "ward-of-the-centre")
    by = ["--model", model.opened.name, "--mean", 0, "--device", "cpu"]
    sites.two.done("denoise", "own", "--out", "own-derived", *by, "--dicom", "--keys", "keys-of-the-ward")
    return sorted((sites.two.home / "own-derived").iterdir())


@pytest.fixture(scope="module")
def model(sites: Sites, noisy_ward: Ward) -> Delivered:
    """A model that Site One trained on images which never leave, opened at Site Two."""
    sites.one.done("train", "default", "--data", noisy_ward.cohort.name, "--out", "run", *TRAIN)
    bundle = sites.deliver(sites.one, "run", "model")
    said = sites.two.done("open", _in(sites.two, bundle), "--out", "model", "--keys", "keys")
    assert "model: model from hospital, 3 files" in said
    return Delivered(bundle, sites.two.home / "model")


def test_noisy_mode_ends_in_derived_objects_of_the_right_patients(
    noisy_ward: Ward, returned: Delivered, derived: list[Path]
) -> None:
    _check_derived(noisy_ward, returned, derived)


def test_so_does_the_mode_of_pairs(pairs_ward: Ward, returned_pairs: Delivered, derived_pairs: list[Path]) -> None:
    _check_derived(pairs_ward, returned_pairs, derived_pairs)


def _check_derived(ward: Ward, returned: Delivered, derived: list[Path]) -> None:
    assert len(derived) == len(ward.images)
    names = _pseudonyms(ward.cohort)
    for path in derived:
        made = dcmread(path)
        uid = str(made.SourceImageSequence[0].ReferencedSOPInstanceUID)
        original = ward.images[uid]
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber", "SOPClassUID"):
            assert made[keyword].value == original[keyword].value
        assert list(made.ImageType)[:2] == ["DERIVED", "SECONDARY"]
        assert made.SeriesDescription.startswith("DENOISED, RESEARCH, NOT FOR DIAGNOSIS")
        with Image.open(returned.opened / f"{names[uid]}.png") as image:
            displayed = np.asarray(image) / 65535
        stored = made.pixel_array / (2**BITS - 1)
        inverted = made.PhotometricInterpretation == "MONOCHROME1"
        np.testing.assert_allclose(1 - stored if inverted else stored, displayed, rtol=0, atol=1 / (2**BITS - 1))
    assert {dcmread(path).PhotometricInterpretation for path in derived} == {"MONOCHROME1", "MONOCHROME2"}


def _pseudonyms(cohort: Path) -> dict[str, str]:
    """By SOP Instance UID, from the list that stays with the cohort."""
    (listed,) = (cohort / "releases").glob("*.csv")
    with listed.open(newline="") as stream:
        return {row["original_image_id"]: row["image_id"] for row in csv.DictReader(stream)}


def test_the_derived_objects_of_every_mode_come_to_lie_in_orthanc(
    derived: list[Path],
    derived_pairs: list[Path],
    own_derived: list[Path],
    noisy_ward: Ward,
    pairs_ward: Ward,
    tmp_path: Path,
) -> None:
    pytest.importorskip("pynetdicom")
    from tests.clinic.orthanc import running_orthanc

    with running_orthanc(tmp_path) as archive:
        address = ["-aec", archive.title, "127.0.0.1", str(archive.dicom)]
        files = [*derived, *derived_pairs, *own_derived]
        subprocess.run(["storescu", *address, *map(str, files)], check=True, capture_output=True, timeout=120)
        assert len(archive.instances()) == len(files)
        of_one, of_other = (next(iter(ward.images.values())) for ward in (noisy_ward, pairs_ward))
        # One series of each visit; Site Two's own images are of one.
        for patient, count in ((str(of_one.PatientID), 2), (str(of_other.PatientID), 2), ("own-1", 1)):
            query = {"Level": "Series", "Query": {"PatientID": patient}, "Expand": True}
            series = archive.post("/tools/find", query)
            assert len(series) == count
            for found in series:
                assert found["MainDicomTags"]["SeriesDescription"].startswith("DENOISED, RESEARCH, NOT FOR DIAGNOSIS")
            kept = archive.get(f"/instances/{series[0]['Instances'][0]}/file")
            assert kept[128:132] == b"DICM"


def test_pairs_train_and_evaluate_at_site_two_once_consent_is_given(
    sites: Sites, noisy: Delivered, noisy_ward: Ward, pairs_ward: Ward, pairs: Delivered, pairs_run: str
) -> None:
    assert Release.open(pairs.opened).pairs
    assert not leaks(readable(pairs.opened), names_and_numbers(pairs_ward.cohort))
    # The clean pixels that the scan below looks for are found where they are.
    assert leaks(readable(pairs.opened), clean_pixels(pairs_ward.cohort))
    said = sites.two.done("evaluate", pairs_run, "--data", pairs.opened.name, "--no-download", "--device", "cpu")
    assert "4 test images of 2 patients" in said
    for_centre = ["--keys", "keys", "--receiver", "centre", "--std", "0.2", "--pairs"]
    without = sites.one.run("obfuscate", pairs_ward.cohort.name, "--out", "more", *for_centre)
    assert (without.status, "--consent-clean-images" in without.err) == (4, True)
    voids = sites.one.run(
        *("obfuscate", noisy_ward.cohort.name, "--out", "more", *for_centre), "--consent-clean-images"
    )
    assert (voids.status, "void" in voids.err) == (4, True)
    assert not (sites.one.home / "more").exists()


def test_model_only_mode_gives_site_two_a_model_and_nothing_else(
    sites: Sites, model: Delivered, own_derived: list[Path]
) -> None:
    assert {path.name for path in model.opened.iterdir()} == {"weights.safetensors", "model.json", "MODEL_CARD.md"}
    weights = hashlib.sha256((model.opened / "weights.safetensors").read_bytes()).hexdigest()
    assert len(own_derived) == 2
    for path in own_derived:
        made = dcmread(path)
        assert str(made.SourceImageSequence[0].ReferencedSOPInstanceUID).startswith(OWN_ROOT)
        assert made.PatientID == "own-1"
        assert weights in str(made.ContributingEquipmentSequence)
    listed = sites.one.done("ledger", "list", "keys", "--trained-on", f"cohort{NOISY_WARD}")
    assert f"committed: model-only, weights {weights}" in listed
    assert "centre" in listed
    assert listed.splitlines()[-1].startswith("1 models trained on")


def test_nothing_that_crossed_and_nothing_at_site_two_tells_of_site_one(
    sites: Sites,
    noisy_ward: Ward,
    pairs_ward: Ward,
    noisy: Delivered,
    returned: Delivered,
    returned_pairs: Delivered,
    model: Delivered,
) -> None:
    one, two = (KeyFolder.open(site.home / "keys") for site in (sites.one, sites.two))
    crossed = []
    bundles = ((noisy.bundle, two), (model.bundle, two), (returned.bundle, one), (returned_pairs.bundle, one))
    for bundle, keys in bundles:
        files = members(decrypted(bundle, keys))
        assert files
        crossed += [item for name, data in files.items() for item in ((name, name.encode()), (name, data))]
    logs = [(log, (sites.one.home / log).read_bytes()) for log in ("keys/exchange/log.jsonl", "incoming/log.jsonl")]
    at_two = [*readable(sites.two.home), *(("what it said", text.encode()) for text in sites.two.said)]
    names = names_and_numbers(noisy_ward.cohort) | names_and_numbers(pairs_ward.cohort)
    pixels = clean_pixels(noisy_ward.cohort)
    assert len(pixels) > 100
    assert not leaks([*crossed, *logs, *at_two], names | pixels)
    # The scan finds all of it where it is.
    at_one = [item for item in readable(sites.one.home) if not item[0].startswith("tmp")]
    found = " ".join(leaks(at_one, names | pixels))
    assert {what for what in names | pixels if f"{what} in" not in found} <= _never_written(names)


def _never_written(names: dict[str, bytes]) -> set[str]:
    """Digests as bytes are in no file, a cohort's path in none of this test's; they are looked for all the same."""
    return {what for what in names if what.endswith("in bytes") or what == "path"}


def test_released_pixels_are_noisy_ones(noisy: Delivered, noisy_ward: Ward) -> None:
    released = np.concatenate([np.load(file) for file in sorted(noisy.opened.glob("noisy-*.npy"))]) / 65535
    clean = np.concatenate([np.load(file) for file in sorted(noisy_ward.cohort.glob("pixels-*.npy"))]) / 65535
    assert released.shape == clean.shape == (len(noisy_ward.images), *SHAPE)
    nearest = min(float(np.sqrt(np.mean((a - b) ** 2))) for a in released for b in clean)
    assert nearest > 0.1  # noise of std 0.2 and mean 0.1, less what is clamped


def test_a_bundle_that_was_tampered_with_is_refused(sites: Sites, noisy: Delivered) -> None:
    data = bytearray(noisy.bundle.read_bytes())
    for place in (len(data) // 2, len(data) - 1, 40):
        tampered = bytearray(data)
        tampered[place] ^= 1
        (sites.two.home / "tampered.veil").write_bytes(tampered)
        result = sites.two.run("open", "tampered.veil", "--out", "trusted", "--keys", "keys")
        assert (result.status, len(result.lines)) == (4, 1), result.err
        assert not (sites.two.home / "trusted").exists()
    lines = (sites.two.home / "keys/exchange/log.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["event"] == "refused" for line in lines) >= 3


def test_a_second_geometry_of_what_left_is_refused(sites: Sites, noisy: Delivered) -> None:
    sites.one.done("import", f"archive{NOISY_WARD}", "--out", "smaller", "--size", 48, "--workers", 1)
    for_centre = ["--keys", "keys", "--receiver", "centre", "--std", "0.2"]
    result = sites.one.run("obfuscate", "smaller", "--out", "again", *for_centre)
    assert (result.status, "another geometry" in result.err) == (4, True), result.err
    assert not (sites.one.home / "again").exists()
    shutil.rmtree(sites.one.home / "smaller")
