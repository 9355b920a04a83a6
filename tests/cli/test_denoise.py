"""veilray denoise: same size and depth out, nothing overwritten, and the noise's mean where it comes from."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tests.command_line import done, veilray

from veilray.cohort.release import Release
from veilray.files import sha256_file
from veilray.images.radiograph import to_levels
from veilray.images.read import read_radiograph
from veilray.inference.denoiser import Denoiser
from veilray.inference.record import DENOISED_RECORD as RECORD


def _levels(height: int, width: int, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[np.generic]:
    top = np.iinfo(np.dtype(dtype)).max
    return np.random.default_rng(height).integers(0, top, (height, width), dtype=dtype, endpoint=True)


def _read(path: Path) -> npt.NDArray[np.generic]:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(32, 32), (37, 51), (3, 5), (1, 1)])
def test_png_keeps_size_and_depth_and_holds_the_network_s_output(
    flow_run: Path, tmp_path: Path, dtype: npt.DTypeLike, size: tuple[int, int]
) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(_levels(*size, dtype)).save(source)
    before = source.read_bytes()
    result = done("denoise", source, "--out", tmp_path / "out", "--model", flow_run)
    assert "1 images denoised" in result.out
    levels = _read(tmp_path / "out" / "in.png")
    assert (levels.shape, levels.dtype) == (size, np.dtype(dtype))
    expected = Denoiser.load(flow_run, device="cpu")(read_radiograph(source).pixels, warn=False)
    np.testing.assert_array_equal(levels, to_levels(expected, dtype))
    assert source.read_bytes() == before


def test_jpeg_and_dicom_become_png(flow_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from tests.images.dicom_files import build, save

    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(_levels(40, 33)).save(folder / "photo.jpg", quality=90)
    (folder / "twelve.dcm").write_bytes(save(build((_levels(24, 31, np.uint16) >> 4).astype(np.uint16), bits=12)))
    done("denoise", folder, "--out", tmp_path / "out", "--model", flow_run)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photo.png", "twelve.png", RECORD}
    photo, twelve = _read(tmp_path / "out" / "photo.png"), _read(tmp_path / "out" / "twelve.png")
    assert (photo.shape, photo.dtype) == ((40, 33), np.uint8)
    assert (twelve.shape, twelve.dtype) == ((24, 31), np.uint16)


def test_archives_and_files_that_cannot_be_used(flow_run: Path, tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.fromarray(_levels(32, 32)).save(image, "png")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("deep/inside.png", image.getvalue())
        archive.writestr("broken.png", image.getvalue()[:-50])
    with tarfile.open(tmp_path / "in.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("other.png")
        member.size = len(image.getvalue())
        archive.addfile(member, io.BytesIO(image.getvalue()))
    words = ["denoise", tmp_path / "in.zip", tmp_path / "in.tar.gz", "--out", tmp_path / "out", "--model", flow_run]
    result = done(*words)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"inside.png", "other.png", RECORD}
    assert "2 images denoised" in result.out
    assert "1 left out" in result.out
    assert sum("broken.png" in line for line in result.lines) == 1


def test_files_that_are_there_are_never_overwritten(flow_run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(_levels(32, 32)).save(tmp_path / name / "same.png")
    words = ["denoise", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out", "--model", flow_run]
    first = done(*words)
    assert "1 images denoised" in first.out
    assert any("b/same.png" in line and "gave" in line for line in first.lines)
    written = (tmp_path / "out" / "same.png").read_bytes()
    second = veilray(*words, "--mean", "0")
    assert second.status == 3
    assert "exists already" in second.err
    assert (tmp_path / "out" / "same.png").read_bytes() == written


def test_names_that_differ_in_their_ending_alone_are_to_be_changed(flow_run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("same.jpg", "same.png"):
        Image.fromarray(_levels(32, 32)).save(tmp_path / "in" / name)
    result = done("denoise", tmp_path / "in", "--out", tmp_path / "out", "--model", flow_run)
    (line,) = (line for line in result.lines if "gave" in line)
    assert "rename one of the two files" in line
    assert "--id-from" not in line


def test_names_that_recur_in_folders_and_archives_are_told_apart_by_their_paths(flow_run: Path, tmp_path: Path) -> None:
    for name in ("in/a", "in/b/c"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(_levels(32, 32)).save(tmp_path / name / "same.png")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(tmp_path / "in" / "a" / "same.png", "a/same.png")
    words = ["denoise", tmp_path / "in", tmp_path / "in.zip", "--out", tmp_path / "out", "--model", flow_run]
    assert "3 images denoised" in done(*words, "--id-from", "path").out
    names = {"in_a_same.png", "in_b_c_same.png", "in.zip_a_same.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, RECORD}
    wrong = veilray(*words, "--dicom", "--keys", tmp_path, "--id-from", "path")
    assert wrong.status == 2
    assert "--id-from" in wrong.err


@pytest.mark.slow
def test_the_input_s_own_folder_is_refused(flow_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    source = folder / "a.png"
    Image.fromarray(_levels(32, 32)).save(source)
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(folder)
    for out in (
        folder,
        folder / "deep",
        folder / "new" / "er",
        tmp_path / "link" / "new",
        tmp_path / "in" / ".." / "in",
    ):
        result = veilray("denoise", folder, "--out", out, "--model", flow_run)
        assert (result.status, len(result.lines)) == (2, 1)
        assert "inside the input" in result.err
    # A file's own folder may take the output of others, but not the file's own.
    result = veilray("denoise", source, "--out", folder, "--model", flow_run)
    assert result.status == 3
    assert "would take its own place" in result.err
    assert "remove" not in result.err
    assert source.read_bytes() == before
    assert [path.name for path in folder.rglob("*.png")] == ["a.png"]
    assert not (folder / "new").exists()


def test_a_file_is_no_output_folder(flow_run: Path, tmp_path: Path) -> None:
    Image.fromarray(_levels(32, 32)).save(tmp_path / "a.png")
    (tmp_path / "out").write_text("mine")
    result = veilray("denoise", tmp_path / "a.png", "--out", tmp_path / "out", "--model", flow_run)
    assert result.status in (1, 2, 3)
    assert len(result.lines) == 1
    assert "unexpected" not in result.err
    assert (tmp_path / "out").read_text() == "mine"


def test_tiles_equal_the_whole(flow_run: Path, tmp_path: Path) -> None:
    Image.fromarray(_levels(200, 170, np.uint16)).save(tmp_path / "a.png")
    words = ["denoise", tmp_path / "a.png", "--model", flow_run, "--device", "cpu"]
    done(*words, "--out", tmp_path / "whole")
    done(*words, "--out", tmp_path / "tiled", "--tile", "96")
    whole, tiled = (_read(tmp_path / name / "a.png").astype(np.int64) for name in ("whole", "tiled"))
    assert len(np.unique(whole)) > 100
    # One level more than 1e-5 of the range, for rounding.
    assert np.abs(whole - tiled).max() <= np.ceil(1e-5 * 65535)


@pytest.mark.parametrize("tile", ["1", "0", "-64"])
def test_tiles_too_small_are_wrong_usage(flow_run: Path, tmp_path: Path, tile: str) -> None:
    Image.fromarray(_levels(32, 32)).save(tmp_path / "a.png")
    words = ["denoise", tmp_path / "a.png", "--out", tmp_path / "out", "--model", flow_run]
    result = veilray(*words, f"--tile={tile}")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "at least" in result.err


@pytest.mark.slow
def test_the_mean_of_the_noise(flow_run: Path, tmp_path: Path) -> None:
    levels = (64 + _levels(32, 32) // 2).astype(np.uint8)  # so that no shift is cut off
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray((levels - 25).astype(np.uint8)).save(tmp_path / "b.png")
    words = ["denoise", "--model", flow_run, "--device", "cpu"]
    done(*words, tmp_path / "a.png", "--out", tmp_path / "left-out")
    done(*words, tmp_path / "a.png", "--out", tmp_path / "same", "--mean", "0.1")
    done(*words, tmp_path / "b.png", "--out", tmp_path / "shifted", "--mean", str(0.1 - 25 / 255))
    done(*words, tmp_path / "a.png", "--out", tmp_path / "none", "--mean", "0")
    expected = _read(tmp_path / "left-out" / "a.png")
    np.testing.assert_array_equal(_read(tmp_path / "same" / "a.png"), expected)
    assert np.abs(_read(tmp_path / "shifted" / "b.png").astype(int) - expected).max() <= 1
    assert not np.array_equal(_read(tmp_path / "none" / "a.png"), expected)


@pytest.mark.slow
def test_a_release_brings_its_own_mean(flow_run: Path, flow_cohort: Path, tmp_path: Path) -> None:
    done("obfuscate", flow_cohort, "--out", tmp_path / "release", "--mean", "0.3", "--std", "0.1")
    words = ["denoise", tmp_path / "release", "--model", flow_run, "--device", "cpu"]
    result = done(*words, "--out", tmp_path / "out")
    release = Release.open(tmp_path / "release")
    assert f"{len(release)} images denoised" in result.out
    denoiser = Denoiser.load(flow_run, device="cpu")
    for row in (0, len(release) - 1):
        written = _read(tmp_path / "out" / f"{release.image_id(row)}.png")
        noisy = release.gather_noisy(np.array([row]))[0]
        np.testing.assert_array_equal(written, to_levels(denoiser(noisy, mean=0.3, warn=False), np.uint8))
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == set(release.image_ids)
    again = veilray(*words, "--out", tmp_path / "out")
    assert again.status == 3
    assert "exists already" in again.err


def test_nothing_to_denoise(flow_run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    result = veilray("denoise", tmp_path / "in", "--out", tmp_path / "out", "--model", flow_run)
    assert result.status == 3
    assert len(result.lines) == 1
    (tmp_path / "in" / "note.txt").write_text("no image")
    result = veilray("denoise", tmp_path / "in", "--out", tmp_path / "out", "--model", flow_run)
    assert result.status == 3
    assert "note.txt" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_models_that_are_none(own_run: Path, flow_cohort: Path, tmp_path: Path) -> None:
    Image.fromarray(_levels(32, 32)).save(tmp_path / "a.png")
    words = ["denoise", tmp_path / "a.png", "--out", tmp_path / "out", "--model"]
    weights = own_run / "checkpoints" / "best.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    for model, status in ((tmp_path / "none", 2), (flow_cohort, 3), (tmp_path / "a.png", 3), (own_run, 3)):
        result = veilray(*words, model)
        assert (result.status, len(result.lines)) == (status, 1), model
        assert str(model) in result.err
    weights.unlink()
    assert "has lost its checkpoints/best.safetensors" in veilray(*words, own_run).err
    weights.write_bytes(whole)
    result = veilray(*words, own_run, "--device", "gpu")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "gpu" in result.err
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_than_the_run_s(own_run: Path, tmp_path: Path) -> None:
    Image.fromarray(_levels(32, 32)).save(tmp_path / "a.png")
    config = own_run / "config.toml"
    config.write_text(config.read_text().replace("width = 4", "width = 8"))
    result = veilray("denoise", tmp_path / "a.png", "--out", tmp_path / "out", "--model", own_run)
    assert (result.status, len(result.lines)) == (3, 1)
    assert "width 8 " in result.err.replace(",", " ")


def test_weights_alone_are_a_model_too(flow_run: Path, tmp_path: Path) -> None:
    Image.fromarray(_levels(32, 32)).save(tmp_path / "a.png")
    words = ["denoise", tmp_path / "a.png", "--device", "cpu", "--model"]
    done(*words, flow_run, "--out", tmp_path / "run")
    done(*words, flow_run / "checkpoints" / "best.safetensors", "--out", tmp_path / "weights")
    assert (tmp_path / "run" / "a.png").read_bytes() == (tmp_path / "weights" / "a.png").read_bytes()


@pytest.mark.slow
def test_dicom_becomes_derived_dicom(flow_run: Path, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("pyrage")
    from tests.images.clinical_files import dx
    from tests.images.dicom_files import save

    from veilray.exchange.keys.folder import KeyFolder

    KeyFolder.create(tmp_path / "keys", name="ward")
    (tmp_path / "in").mkdir()
    values = (_levels(24, 31, np.uint16) >> 4).astype(np.uint16)
    (tmp_path / "in" / "a.dcm").write_bytes(save(dx(values, bits=12, PhotometricInterpretation="MONOCHROME1")))
    Image.fromarray(_levels(32, 32)).save(tmp_path / "in" / "b.png")
    words = ["denoise", tmp_path / "in", "--model", flow_run, "--device", "cpu", "--out"]
    result = done(*words, tmp_path / "out", "--dicom", "--keys", tmp_path / "keys")
    assert "1 images denoised" in result.out
    assert any("b.png" in line and "no DICOM" in line for line in result.lines)
    (path,) = (tmp_path / "out").iterdir()
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    derived = pydicom.dcmread(path)
    assert derived.PhotometricInterpretation == "MONOCHROME1"
    weights = flow_run / "checkpoints" / "best.safetensors"
    assert derived.ContributingEquipmentSequence[0].SoftwareVersions[1] == sha256_file(weights)
    expected = Denoiser.load(flow_run, device="cpu")(read_radiograph(tmp_path / "in" / "a.dcm").pixels, warn=False)
    np.testing.assert_allclose(read_radiograph(path).pixels, expected, atol=0.5 / 4095 + 1e-6)
    again = veilray(*words, tmp_path / "out", "--dicom", "--keys", tmp_path / "keys")
    assert (again.status, "exists already" in again.err) == (3, True)
    twice = veilray(*words[:1], path, *words[2:], tmp_path / "twice", "--dicom", "--keys", tmp_path / "keys")
    assert (twice.status, "made it" in twice.err) == (3, True)
    for extra in (["--dicom"], ["--keys", tmp_path / "keys"], ["--receiver", "centre"]):
        assert veilray(*words, tmp_path / "no", *extra).status == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("mean", ["nan", "inf", "-inf"])
def test_a_mean_that_is_no_number_is_wrong_usage(flow_run: Path, tmp_path: Path, mean: str) -> None:
    Image.fromarray(_levels(32, 32)).save(tmp_path / "a.png")
    words = ["denoise", tmp_path / "a.png", "--model", flow_run, "--device", "cpu"]
    result = veilray(*words, f"--mean={mean}", "--out", tmp_path / "out")
    assert (result.status, len(result.lines)) == (2, 1)
    assert f"a mean of {mean} was given" in result.err
    assert not (tmp_path / "out").exists()


def test_a_std_goes_only_to_networks_that_take_it(flow_run: Path, tmp_path: Path) -> None:
    Image.fromarray(_levels(32, 32)).save(tmp_path / "a.png")
    words = ["denoise", tmp_path / "a.png", "--model", flow_run, "--device", "cpu"]
    result = veilray(*words, "--std", "0.2", "--out", tmp_path / "out")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "not told the noise's std" in result.err
    assert not (tmp_path / "out").exists()
