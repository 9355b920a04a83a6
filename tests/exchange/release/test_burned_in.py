"""Burned-in text: planted lines are found, plain phantoms are left alone, reviews and blanks do as told."""

from __future__ import annotations

import csv
import stat
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.leaving import Box
from veilray.errors import DataError, UsageError
from veilray.exchange.release.burned_in import _opened, find_text
from veilray.exchange.release.originals import read_originals
from veilray.exchange.release.review import Blanks, look, parse_blank, read_blanks, write_quarantine
from veilray.images.phantom import chest_phantom, write_phantoms
from veilray.images.read import read_radiograph


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[npt.NDArray[np.float32]]:
    """12 chest phantoms, 256 x 256."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, patients=6, follow_ups=2, seed=3, size=256)
    return [read_radiograph(path).pixels for path in sorted(folder.glob("*.png"))]


def planted(
    pixels: npt.NDArray[np.float32], text: str, *, at: tuple[int, int], size: int, level: int
) -> npt.NDArray[np.float32]:
    """The image with a line of text: `at` is left, top."""
    image = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    ImageDraw.Draw(image).text(at, text, fill=level, font=ImageFont.load_default(size))
    return np.asarray(image, dtype=np.float32) / 255


@pytest.mark.slow
def test_phantoms_hold_no_text(phantoms: list[npt.NDArray[np.float32]]) -> None:
    assert [find_text(pixels) for pixels in phantoms if find_text(pixels)] == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 14, 20])
def test_a_line_of_text_is_found_where_it_is(phantoms: list[npt.NDArray[np.float32]], size: int) -> None:
    for pixels in phantoms[:4]:
        found = find_text(planted(pixels, "DOE JANE 1950", at=(12, 6), size=size, level=255))
        assert found
        assert all(box.top < 8 + 2 * size and box.left < 12 + 10 * size for box in found)


def test_dark_text_on_bright_ground_is_text() -> None:
    bright = np.full((256, 256), 0.9, np.float32)
    assert find_text(planted(bright, "PORTABLE", at=(100, 50), size=14, level=20))


def test_a_side_marker_and_faint_text_are_not(phantoms: list[npt.NDArray[np.float32]]) -> None:
    """One letter is no line; what is said not to be found is not found."""
    pixels = np.full((256, 256), 0.3, np.float32)
    assert find_text(planted(pixels, "L", at=(20, 20), size=20, level=255)) == []
    assert find_text(planted(pixels, "DOE JANE", at=(20, 20), size=14, level=90)) == []


def test_large_images_are_searched_smaller() -> None:
    pixels = np.full((1100, 1300), 0.3, np.float32)
    found = find_text(planted(pixels, "PORTABLE", at=(600, 300), size=40, level=255))
    assert found
    for box in found:
        assert 280 <= box.top < 350
        assert 580 <= box.left < 900


@pytest.mark.slow
@pytest.mark.parametrize("size", [12, 16, 40, 150])
def test_small_and_large_text_of_a_large_image_is_found(size: int) -> None:
    plain = chest_phantom(patient=1, follow_up=0, seed=5, size=2048)
    assert find_text(plain) == []
    found = find_text(planted(plain, "DOE JANE 1950", at=(900, 150), size=size, level=255))
    assert found
    for box in found:
        assert 140 - size <= box.top < 150 + 2 * size
        assert 890 - size <= box.left < 900 + 10 * size


@pytest.mark.parametrize("step", [1, 2])
def test_text_that_is_found_at_two_sizes_is_one_region(step: int) -> None:
    pixels = np.full((1030, 1100), 0.3, np.float32)
    assert len(find_text(planted(pixels, "PORTABLE", at=(600, 300), size=14 * step, level=255))) == 1


def test_small_images_are_not_searched() -> None:
    noise = np.random.default_rng(0).random((63, 200), dtype=np.float32)
    assert find_text(noise) == []


@pytest.mark.parametrize("size", [3, 7, 21])
def test_the_opening_is_scipys(size: int) -> None:
    pixels = np.random.default_rng(0).random((40, 57), dtype=np.float32)
    np.testing.assert_array_equal(_opened(pixels, size), ndimage.grey_opening(pixels, size=size, mode="nearest"))


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Two images of 192 x 256 brought to 128 x 128: one plain, one with text."""
    (tmp_path / "in").mkdir()
    plain = np.full((192, 256), 0.2, np.float32)
    for name, pixels in (("a", plain), ("b", planted(plain, "DOE JANE", at=(40, 20), size=18, level=255))):
        Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(tmp_path / "in" / f"{name}.png")
    import_radiographs([tmp_path / "in"], tmp_path / "cohort", size=128, workers=1)
    return Cohort.open(tmp_path / "cohort")


def _reasons(cohort: Cohort, blanks: Blanks | None = None, reviewed: Path | None = None) -> list[str]:
    return [found.reason for found in look(cohort, read_originals(cohort), blanks or Blanks(), reviewed=reviewed)]


def test_kept_back_reviewed_and_blanked(cohort: Cohort, tmp_path: Path) -> None:
    assert _reasons(cohort) == ["", "it has regions that look like text"]
    originals = read_originals(cohort)
    found = list(look(cohort, originals, Blanks(), reviewed=None))
    path = write_quarantine(cohort, [(originals[1], found[1])])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["image_id"] for row in rows} == {"b"}
    boxes = [[int(row[name]) for name in ("x", "y", "width", "height")] for row in rows]
    assert min(x for x, _, _, _ in boxes) <= 45
    assert max(x + width for x, _, width, _ in boxes) >= 100
    assert all(y <= 26 and y + height >= 34 for _, y, _, height in boxes)
    # The list itself, given back, lets the image go or blanks what was found.
    assert _reasons(cohort, reviewed=path) == ["", ""]
    assert _reasons(cohort, Blanks(by_image=read_blanks(path))) == ["", ""]
    Cohort.open(cohort.path).verify()


def test_a_header_that_says_yes_keeps_an_image_back(cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image_id,patient_id,burned_in\na,a,YES\nb,b,NO\n")
    import_radiographs([tmp_path / "in"], tmp_path / "said", size=128, workers=1, patients=tmp_path / "p.csv")
    said = Cohort.open(tmp_path / "said")
    first, second = _reasons(said)
    assert "(0028,0301) YES" in first
    assert "look like text" in second  # NO is not believed


def test_blanks_are_rounded_outwards_in_the_pixels_that_leave(cohort: Cohort) -> None:
    (original, _) = read_originals(cohort)
    blanks = Blanks(everywhere=((3, 5, 10, 10), (300, 0, 5, 5)), by_image={"a": [(0, 0, 256, 192)]})
    # 192 x 256 became 128 x 128: down by 2/3, across by 1/2.
    assert blanks.boxes(original) == (Box(0, 0, 128, 128), Box(3, 1, 7, 6))


@pytest.mark.parametrize("text", ["", "1,2,3", "a,b,c,d", "-1,0,5,5", "0,0,0,5", "0,0,5,5,5"])
def test_rectangles_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="X,Y,WIDTH,HEIGHT"):
        parse_blank(text)


def test_lists_that_do_not_fit(cohort: Cohort, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("image_id\nelsewhere\n")
    with pytest.raises(DataError, match="1 of the images listed"):
        _reasons(cohort, reviewed=path)
    with pytest.raises(DataError, match="no column x"):
        read_blanks(path)
    path.write_text("image_id,x,y,width,height\na,1,2,3,\n")
    with pytest.raises(DataError, match="line 2"):
        read_blanks(path)
