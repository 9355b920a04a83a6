"""Pixel files: `KIND-HxW-DTYPE.npy`, (N, H, W), appended to while writing, memory-mapped while reading."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from veilray.errors import CohortError
from veilray.images.radiograph import FloatImage, Levels

Kind = Literal["pixels", "noisy", "clean"]
"""`pixels`: of a cohort; `noisy` and `clean`: of a release."""

_NAME = re.compile(r"(pixels|noisy|clean)-([1-9]\d{0,5})x([1-9]\d{0,5})-(uint8|uint16)\.npy")


# The highest level, by bytes a level; looked up, since asking numpy each time costs as much as 2,000 pixels.
_TOP = {1: np.float32(255), 2: np.float32(65535)}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a level stands for: offset + step * level."""

    offset: float
    step: float


class PixelWriter:
    """Appends images to the pixel files of a new folder, one file for each size and depth, none of them in memory."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder = folder
        self.kind: Kind = kind
        self.counts: dict[str, int] = {}
        """Images in each file, by its name."""

    def append(self, levels: Levels) -> tuple[str, int]:
        """Append one (H, W) image of uint8 or uint16; returns the name of its file and its row there."""
        height, width = levels.shape
        name = f"{self.kind}-{height}x{width}-{levels.dtype.name}.npy"
        row = self.counts.get(name, 0)
        # Opened anew for each image: a native cohort can have more sizes than a process may hold open files.
        with (self.folder / name).open("ab") as stream:
            if row == 0:
                _write_header(stream, levels.dtype, (0, height, width))
            stream.write(np.ascontiguousarray(levels, dtype=levels.dtype.newbyteorder("<")).data)
        self.counts[name] = row + 1
        return name, row

    def finish(self) -> None:
        """Write the number of images, known only now, into the headers."""
        for name, count in self.counts.items():
            height, width, dtype = parse_name(name)
            with (self.folder / name).open("r+b") as stream:
                # numpy pads the header so that the first axis can grow in place.
                _write_header(stream, dtype, (count, height, width))


@dataclass(frozen=True)
class PixelFile:
    """One memory-mapped pixel file: (N, H, W), uint8 or uint16, shared by every process that maps it."""

    levels: npt.NDArray[Any]
    scale: Scale
    spans_unit: bool
    """Whether the levels span [0, 1]: level / highest level."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.levels.shape[1], self.levels.shape[2]


def open_pixels(folder: Path, name: str, *, n_bytes: int, scale: Scale | None = None) -> PixelFile:
    """Map a pixel file and check it against its name and its length. Levels span [0, 1] unless `scale` says else.

    Raises CohortError where the file is missing, cut short, or not what its name says.
    """
    height, width, dtype = parse_name(name)
    path = folder / name
    try:
        found = path.stat().st_size
        levels = np.load(path, mmap_mode="r", allow_pickle=False) if found == n_bytes else None
    except FileNotFoundError:
        raise CohortError(f"{path} is missing; copy the folder again") from None
    except (ValueError, OSError, EOFError) as error:
        raise CohortError(f"{path} is not a pixel file ({str(error).splitlines()[0]}); copy the folder again") from None
    if levels is None:
        raise CohortError(f"{path} has {found} bytes instead of {n_bytes}; copy the folder again")
    fits = isinstance(levels, np.ndarray) and levels.ndim == 3 and levels.flags.c_contiguous
    if not fits or levels.shape[1:] != (height, width) or levels.dtype != dtype:
        raise CohortError(f"{path} does not hold what its name says; copy the folder again")
    # Without numpy's memmap class, which makes every slice slow; the map lives as long as the array.
    whole = full_scale(dtype)
    return PixelFile(np.asarray(levels), scale or whole, spans_unit=scale in (None, whole))


def parse_name(name: str) -> tuple[int, int, np.dtype[Any]]:
    """Height, width and dtype from a pixel file's name; CohortError for a name that is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise CohortError(f"{name!r} is not the name of a pixel file")
    return int(match[2]), int(match[3]), np.dtype(match[4]).newbyteorder("<")


def full_scale(dtype: npt.DTypeLike) -> Scale:
    """The scale of levels that span [0, 1]."""
    return Scale(offset=0.0, step=1.0 / np.iinfo(np.dtype(dtype)).max)


class PixelSet:
    """The pixel files of one kind, and the images in them by (file code, row)."""

    def __init__(self, files: Mapping[str, PixelFile]) -> None:
        self.names = list(files)
        """Names of the files, in the order of their codes."""
        self.files = list(files.values())

    def gather(
        self, codes: npt.NDArray[np.integer[Any]], rows: npt.NDArray[np.integer[Any]], out: FloatImage | None = None
    ) -> FloatImage:
        """Images as float32, (n, H, W), into `out` where it is given.

        Levels that span [0, 1] are divided by the highest, correctly rounded. Raises CohortError where the images are
        not all of one size, or `out` does not fit.
        """
        chosen = [self.files[code] for code in codes.tolist()]
        sizes = {self.files[code].size for code in set(codes.tolist())}
        if len(sizes) != 1:
            raise CohortError(
                f"a batch must hold images of one size, not of {len(sizes)}; take its rows from one group"
            )
        shape = (len(chosen), *sizes.pop())
        if out is None:
            out = np.empty(shape, dtype=np.float32)
        elif out.shape != shape or out.dtype != np.float32:
            raise CohortError(f"out must be float32 of shape {shape}, not {out.dtype} of {out.shape}")
        # Image by image, straight from the map: a copy of the batch's levels first would leave the core's cache.
        for image, file, row in zip(out, chosen, rows.tolist(), strict=True):
            _to_float(file, row, image)
        return out


def _to_float(file: PixelFile, row: int, image: FloatImage) -> None:
    # A cast, then arithmetic in place: both vectorise, and the second finds the image in the core's cache.
    image[...] = file.levels[row]
    if file.spans_unit:
        image /= _TOP[file.levels.itemsize]
    else:
        image *= np.float32(file.scale.step)
        image += np.float32(file.scale.offset)


def _write_header(stream: Any, dtype: np.dtype[Any], shape: tuple[int, int, int]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype.newbyteorder("<"))
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
