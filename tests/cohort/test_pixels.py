"""Pixel files: what goes in comes out, and nothing else is accepted."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilray.cohort.pixels import PixelSet, PixelWriter, Scale, open_pixels, parse_name
from veilray.errors import CohortError
from veilray.images.radiograph import to_pixels

NAME = "pixels-3x4-uint8.npy"


def _open(folder: Path, name: str, scale: Scale | None = None) -> npt.NDArray[np.generic]:
    return open_pixels(folder, name, n_bytes=(folder / name).stat().st_size, scale=scale).levels


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from([(3, 4), (5, 2)]), st.sampled_from(["uint8", "uint16"])), min_size=1))
def test_files_are_plain_numpy_files_of_what_was_appended(kinds: list[tuple[tuple[int, int], str]]) -> None:
    rng = np.random.default_rng(len(kinds))
    with tempfile.TemporaryDirectory() as name:
        writer = PixelWriter(Path(name), "pixels")
        images = [rng.integers(0, np.iinfo(dtype).max, shape).astype(dtype) for shape, dtype in kinds]
        places = [writer.append(image) for image in images]
        writer.finish()
        for image, (file, row) in zip(images, places, strict=True):
            whole = np.load(Path(name) / file)
            assert len(whole) == writer.counts[file]
            np.testing.assert_array_equal(whole[row], image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_level_is_divided_as_radiographs_are(tmp_path: Path, dtype: type[np.uint8] | type[np.uint16]) -> None:
    levels = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(16, -1)
    writer = PixelWriter(tmp_path, "pixels")
    name, row = writer.append(levels)
    writer.finish()
    file = open_pixels(tmp_path, name, n_bytes=(tmp_path / name).stat().st_size)
    gathered = PixelSet({name: file}).gather(np.array([0]), np.array([row]))
    np.testing.assert_array_equal(gathered[0], to_pixels(levels))


def test_a_scale_of_its_own(tmp_path: Path) -> None:
    levels = np.array([[0, 1000, 65535]], dtype=np.uint16)
    writer = PixelWriter(tmp_path, "noisy")
    name, _ = writer.append(levels)
    writer.finish()
    scale = Scale(offset=-1.5, step=1e-4)
    file = open_pixels(tmp_path, name, n_bytes=(tmp_path / name).stat().st_size, scale=scale)
    gathered = PixelSet({name: file}).gather(np.array([0]), np.array([0]))
    np.testing.assert_allclose(gathered[0], -1.5 + 1e-4 * levels.astype(np.float64), rtol=0, atol=1e-6)


def test_gathering_into_a_buffer(tmp_path: Path) -> None:
    writer = PixelWriter(tmp_path, "pixels")
    images = [np.full((3, 4), level, dtype=np.uint8) for level in (0, 51, 255)]
    for image in images:
        writer.append(image)
    writer.finish()
    pixels = PixelSet({NAME: open_pixels(tmp_path, NAME, n_bytes=(tmp_path / NAME).stat().st_size)})
    out = np.full((2, 3, 4), np.nan, dtype=np.float32)
    assert pixels.gather(np.array([0, 0]), np.array([2, 1]), out) is out
    assert out[:, 0, 0].tolist() == [1.0, np.float32(0.2)]
    for wrong in (np.empty((3, 3, 4), np.float32), np.empty((2, 3, 4), np.float64)):
        with pytest.raises(CohortError, match="out must be float32"):
            pixels.gather(np.array([0, 0]), np.array([2, 1]), wrong)


@pytest.mark.parametrize(
    "content",
    [
        np.zeros((2, 4, 3), np.uint8),
        np.zeros((2, 3, 4), np.int8),
        np.zeros((24,), np.uint8),
        np.asfortranarray(np.zeros((2, 3, 4), np.uint8)),
        np.array([[["x"] * 4] * 3], dtype=object),
    ],
    ids=["other size", "other type", "flat", "column-major", "objects"],
)
def test_an_array_that_its_name_does_not_announce(tmp_path: Path, content: npt.NDArray[np.generic]) -> None:
    np.save(tmp_path / NAME, content, allow_pickle=True)
    with pytest.raises(CohortError, match=NAME):
        _open(tmp_path, NAME)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 200,
        b"\x93NUMPY\x01\x00\xff\xff{",
        pickle.dumps([1, 2]),
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 3, 4), }".ljust(118),
    ],
    ids=["empty", "zeros", "header cut short", "pickle", "more images than bytes"],
)
def test_bytes_that_are_no_pixel_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(CohortError, match=NAME):
        _open(tmp_path, NAME)


def test_a_file_cut_short_or_missing(tmp_path: Path) -> None:
    np.save(tmp_path / NAME, np.zeros((2, 3, 4), np.uint8))
    size = (tmp_path / NAME).stat().st_size
    with (tmp_path / NAME).open("r+b") as stream:
        stream.truncate(size - 1)
    with pytest.raises(CohortError, match="bytes instead of"):
        open_pixels(tmp_path, NAME, n_bytes=size)
    with pytest.raises(CohortError, match=NAME):
        open_pixels(tmp_path, NAME, n_bytes=size - 1)
    (tmp_path / NAME).unlink()
    with pytest.raises(CohortError, match="is missing"):
        open_pixels(tmp_path, NAME, n_bytes=size)


@pytest.mark.parametrize(
    "name", ["../pixels-3x4-uint8.npy", "pixels-0x4-uint8.npy", "pixels-3x4-int8.npy", "x.npy", ""]
)
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(CohortError, match="not the name of a pixel file"):
        parse_name(name)
