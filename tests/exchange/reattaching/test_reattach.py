"""Images that come back under pseudonyms find their originals, and nothing else."""

from __future__ import annotations

import csv
import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("pydicom")

from pydicom import dcmread
from tests.command_line import done, veilray
from tests.images.clinical_files import ROOT, cr
from tests.images.dicom_files import save

from veilray.cohort.records import ReleasedNoise
from veilray.errors import UsageError
from veilray.exchange.reattaching.reattach import reattach
from veilray.images.radiograph import to_levels
from veilray.images.read import read_radiograph
from veilray.images.write import write_png
from veilray.inference.files import Denoised
from veilray.inference.record import DenoisedRelease, DenoiseSettings, new_batch, note_denoised

if TYPE_CHECKING:
    from veilray.exchange.keys.folder import KeyFolder
    from veilray.exchange.release.pseudonyms import Pseudonyms

KEY = b"k" * 32
SETTINGS = DenoiseSettings(mean=None, tile=1024, precision="fp32")
RELEASE = DenoisedRelease(release_id="0" * 32, noise=ReleasedNoise(mean=0.1, std=0.2, clip=True))


def _name(uid: str) -> str:
    return hashlib.sha256(b"secret" + uid.encode()).hexdigest()[:32]


def _two_sites(folder: Path) -> tuple[KeyFolder, KeyFolder, Pseudonyms]:
    """Keys of a ward and of a centre that it knows, and the names that the ward's images have there."""
    pytest.importorskip("pyrage")
    from veilray.exchange.keys.folder import KeyFolder
    from veilray.exchange.release.pseudonyms import Pseudonyms

    keys = KeyFolder.create(folder / "keys", name="ward")
    other = KeyFolder.create(folder / "other", name="centre", role="site-two")
    keys.pin(other.card)
    return keys, other, Pseudonyms(keys.pseudonym_key(other.card.fingerprint).reveal())


def _pixels(index: int) -> npt.NDArray[np.float32]:
    """Of the original of that number, (20 + index, 26)."""
    return np.random.default_rng(index).random((20 + index, 26), dtype=np.float32)


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """Three CR images of different sizes, one of them in an archive, beside files that are none."""
    folder = tmp_path / "originals"
    folder.mkdir()
    for index in range(3):
        values = np.rint(4095 * _pixels(index)).astype(np.uint16)
        data = save(cr(values, bits=12, SOPInstanceUID=f"{ROOT}.9.{index}"))
        if index == 2:
            with zipfile.ZipFile(folder / "more.zip", "w") as archive:
                archive.writestr("deep/2.dcm", data)
        else:
            (folder / f"{index}.dcm").write_bytes(data)
    (folder / "note.txt").write_text("no image")
    (folder / "broken.dcm").write_bytes(bytes(128) + b"DICM" + bytes(40))
    return folder


def _back(
    folder: Path, images: dict[str, npt.NDArray[np.float32]], *, release: DenoisedRelease | None = RELEASE
) -> Path:
    """A folder as it comes back from Site Two."""
    folder.mkdir()
    for name, pixels in images.items():
        write_png(folder / f"{name}.png", to_levels(pixels, np.uint16))
    batch = new_batch(weights_sha256="ab" * 32, settings=SETTINGS, release=release)
    note_denoised(folder, batch, [f"{name}.png" for name in images])
    return folder


def _all_three(name: Callable[[str], str] = _name) -> dict[str, npt.NDArray[np.float32]]:
    """The originals, smoothed a little, under their pseudonyms."""
    return {name(f"{ROOT}.9.{index}"): 0.9 * _pixels(index) + np.float32(0.05) for index in range(3)}


def _run(returned: Path, originals: Path, out: Path) -> list[Denoised]:
    return list(reattach([returned], [originals], out, names=lambda uid: ["f" * 32, _name(uid)], key=KEY))


@pytest.mark.slow
def test_each_image_goes_to_its_own_original(originals: Path, tmp_path: Path) -> None:
    back = _back(tmp_path / "back", _all_three())
    results = _run(back, originals, tmp_path / "out")
    assert [result.reason for result in results] == ["", "", ""]
    sources = set()
    for path in (tmp_path / "out").iterdir():
        derived = dcmread(path)
        assert path.name == f"{derived.SOPInstanceUID}.dcm"
        source = derived.SourceImageSequence[0].ReferencedSOPInstanceUID
        sources.add(source)
        returned = read_radiograph(back / f"{_name(source)}.png").pixels
        np.testing.assert_allclose(read_radiograph(path).pixels, returned, atol=0.5 / 4095 + 1e-6)
        assert "mean 0.1, standard deviation 0.2" in derived.DerivationDescription
    assert sources == {f"{ROOT}.9.{index}" for index in range(3)}


@pytest.mark.slow
def test_what_names_patients_is_its_owners_alone(originals: Path, tmp_path: Path) -> None:
    mask = os.umask(0o000)
    try:
        _run(_back(tmp_path / "back", _all_three()), originals, tmp_path / "new" / "out")
    finally:
        os.umask(mask)
    assert (tmp_path / "new/out").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "new/out").iterdir()] == [0o600] * 3


@pytest.mark.slow
def test_a_retry_makes_the_same_files_and_overwrites_none(originals: Path, tmp_path: Path) -> None:
    back = _back(tmp_path / "back", _all_three())
    _run(back, originals, tmp_path / "out")
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = _run(back, originals, tmp_path / "out")
    assert all("exists already" in result.reason for result in again)
    _run(back, originals, tmp_path / "other")
    assert {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()} == first


@pytest.mark.slow
def test_the_same_noisy_images_released_again_make_no_second_objects(originals: Path, tmp_path: Path) -> None:
    made = []
    for number, (release_id, digest) in enumerate([("1", "c"), ("2", "c"), ("2", "d"), ("1", None), ("2", None)]):
        release = DenoisedRelease(release_id=release_id * 32, digest=digest and digest * 64, noise=RELEASE.noise)
        back = _back(tmp_path / f"back{number}", _all_three(), release=release)
        _run(back, originals, tmp_path / f"out{number}")
        made.append(frozenset(path.name for path in (tmp_path / f"out{number}").iterdir()))
    assert made[0] == made[1]
    # Other noisy images, and those of which nobody knows whether they are the same, are others.
    assert len(set(made)) == 4


@pytest.mark.slow
def test_what_does_not_fit_is_reported_with_the_reason(originals: Path, tmp_path: Path) -> None:
    images = _all_three()
    first, *_ = images
    images[first] = images[first][:16, :16]  # not of native size
    images["e" * 32] = _pixels(0)  # of nobody
    back = _back(tmp_path / "back", images)
    (back / f"{_name(f'{ROOT}.9.1')}.png").unlink()
    write_png(back / f"{'d' * 32}.png", np.zeros((4, 4), np.uint8))
    reasons = {Path(result.source).stem: result.reason for result in _run(back, originals, tmp_path / "out")}
    assert "native size" in reasons[first]
    assert "pseudonym" in reasons["e" * 32]
    assert "missing" in reasons[_name(f"{ROOT}.9.1")]
    assert "does not say" in reasons["d" * 32]
    assert reasons[_name(f"{ROOT}.9.2")] == ""
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_images_under_each_other_s_names_are_attached_to_nobody(originals: Path, tmp_path: Path) -> None:
    images = _all_three()
    first, second, third = images
    swapped = {first: _pixels(1)[:20], second: np.vstack([_pixels(0), _pixels(0)[:1]]), third: images[third]}
    back = _back(tmp_path / "back", swapped)
    reasons = {Path(result.source).stem: result.reason for result in _run(back, originals, tmp_path / "out")}
    assert ["resemble" in reasons[name] for name in (first, second, third)] == [True, True, False]
    assert len(list((tmp_path / "out").iterdir())) == 1
    # A person who has looked may say that they are right.
    results = reattach([back], [originals], tmp_path / "all", names=lambda uid: [_name(uid)], key=KEY, unlike=True)
    assert sorted(len(result.warnings) for result in results if result.target) == [0, 1, 1]


def test_a_record_can_name_no_path_and_no_image_of_no_release(originals: Path, tmp_path: Path) -> None:
    back = _back(tmp_path / "back", _all_three(), release=None)
    assert all("not denoised from a release" in result.reason for result in _run(back, originals, tmp_path / "out"))
    record = (back / "denoised.json").read_text()
    (back / "denoised.json").write_text(record.replace(_name(f"{ROOT}.9.0"), "../originals/0"))
    assert all(result.target is None for result in _run(back, originals, tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"denoised\.json"):
        _run(tmp_path / "empty", originals, tmp_path / "out")
    with pytest.raises(UsageError, match="inside"):
        _run(back, originals, back / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_was_left_out_is_listed_and_can_be_an_error(originals: Path, tmp_path: Path) -> None:
    _, _, names = _two_sites(tmp_path)
    back, out = _back(tmp_path / "back", _all_three(names.image)), tmp_path / "out"
    words = ["denoise", back, "--keys", tmp_path / "keys", "--receiver", "centre", "--out", out]
    some = ["--reattach", originals / "0.dcm", "--reattach", originals / "1.dcm"]
    said = done(*words, *some)
    assert "2 images attached" in said.out
    assert "1 returned images have no derived object" in said.err
    with (out / "left_out.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["image", "reason"]
    assert [(Path(source).stem, "pseudonym" in why) for source, why in rows[1:]] == [(names.image(f"{ROOT}.9.2"), True)]
    assert (out / "left_out.csv").stat().st_mode & 0o777 == 0o600
    failed = veilray(*words, *some, "--all")  # the two are there already, which is no fault
    assert failed.status == 3
    assert "1 returned images have no derived object" in failed.err
    for attached in ("1 images attached", "0 images attached"):
        said = done(*words, "--reattach", originals, "--all")
        assert attached in said.out
        assert {path.suffix for path in out.iterdir()} == {".dcm"}
    assert len(list(out.iterdir())) == 3
    assert veilray("denoise", back, "--out", tmp_path / "no", "--all").status == 2


@pytest.mark.slow
def test_the_command_finds_originals_by_this_site_s_keys_before_and_after_rotations(
    originals: Path, tmp_path: Path
) -> None:
    keys, other, names = _two_sites(tmp_path)
    back = _back(tmp_path / "back", _all_three(names.image))
    words = ["denoise", back, "--reattach", originals, "--keys", tmp_path / "keys"]
    result = done(*words, "--receiver", "centre", "--out", tmp_path / "out")
    assert "3 images attached" in result.out
    keys.rotate("pseudonyms")
    done(*words, "--receiver", "centre", "--out", tmp_path / "later")
    other.rotate("receiving")
    keys.pin(other.card, replace=True)
    done(*words, "--receiver", "centre", "--out", tmp_path / "latest")
    keys.unpin("centre")
    done(*words, "--receiver", "centre", "--out", tmp_path / "last")
    made = [{path.name for path in (tmp_path / name).iterdir()} for name in ("out", "later", "latest", "last")]
    assert made == [made[0]] * 4
    assert veilray(*words, "--receiver", "nobody", "--out", tmp_path / "no").status == 4
    for extra in ([], ["--receiver", "centre", "--model", tmp_path], ["--receiver", "centre", "--mean", "0"]):
        result = veilray(*words, *extra, "--out", tmp_path / "no")
        assert (result.status, len(result.lines)) == (2, 1)
    assert not (tmp_path / "no").exists()
