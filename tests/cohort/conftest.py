"""Small radiographs on disk, and cohorts made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort


def picture(seed: int, height: int = 16, width: int = 16, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[np.generic]:
    """Random levels over the full range."""
    top = np.iinfo(np.dtype(dtype)).max
    return np.random.default_rng(seed).integers(0, top, (height, width), dtype=dtype, endpoint=True)


def save(path: Path, levels: npt.NDArray[np.generic]) -> Path:
    """Write a greyscale PNG of 8 or 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)
    return path


@pytest.fixture
def draw() -> Callable[..., npt.NDArray[np.generic]]:
    """`picture`: draw(seed, height=16, width=16, dtype=np.uint8)."""
    return picture


@pytest.fixture
def write() -> Callable[..., Path]:
    """`save`: write(path, levels)."""
    return save


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    """60 images of 20 patients under NIH names, 16x16, 8 bit."""
    folder = tmp_path / "radiographs"
    for patient in range(20):
        for follow_up in range(3):
            save(folder / f"{patient:08}_{follow_up:03}.png", picture(100 * patient + follow_up))
    return folder


@pytest.fixture
def cohort(radiographs: Path, tmp_path: Path) -> Cohort:
    """The 60 radiographs, imported as they are."""
    import_radiographs([radiographs], tmp_path / "cohort", size=None, workers=1)
    return Cohort.open(tmp_path / "cohort")


@pytest.fixture
def mixed(tmp_path: Path) -> Cohort:
    """A native cohort of two sizes and two depths: 16x16 in 8 and 16 bits, 12x20 in 8 bits; 4 patients of each."""
    folder = tmp_path / "mixed"
    for number in range(4):
        save(folder / f"{number:08}_000.png", picture(number))
        save(folder / f"{number + 10:08}_000.png", picture(number + 10, dtype=np.uint16))
        save(folder / f"{number + 20:08}_000.png", picture(number + 20, 12, 20))
    import_radiographs([folder], tmp_path / "mixed-cohort", size=None, workers=1)
    return Cohort.open(tmp_path / "mixed-cohort")


@pytest.fixture
def patched_json() -> Callable[..., None]:
    """Change fields of a JSON file: patched_json(path, field=value)."""

    def patch(path: Path, **fields: object) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return patch
