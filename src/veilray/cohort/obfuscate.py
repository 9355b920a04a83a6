"""Make a release from a cohort: draw the noise, replace every id by a pseudonym, and keep the list of them at home."""

from __future__ import annotations

import csv
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from veilray.cohort.cohort import Cohort
from veilray.cohort.pixels import PixelWriter, Scale, full_scale, parse_name
from veilray.cohort.records import (
    INDEX_FILE,
    RELEASE_FILE,
    Quantisation,
    ReleasedNoise,
    ReleaseRecord,
    record_files,
    with_digest,
)
from veilray.cohort.split import SPLITS
from veilray.cohort.table import Rows
from veilray.errors import CohortError
from veilray.files import replacing, replacing_folder, write_json
from veilray.images.radiograph import FloatImage, Levels, to_levels
from veilray.obfuscation.config import NoiseConfig
from veilray.obfuscation.noise import entropy_normal, fill_standard_normal, keyed_draw

PSEUDONYMS = "releases"
"""Folder inside a cohort for the lists of pseudonyms, `RELEASE_ID.csv`; they never leave Site One."""

# All that the index of a release may say. The height and width are those of the released pixels: an original's own
# size could lead back to it.
_COLUMNS = ("image_id", "patient_id", "split", "height", "width", "pixels", "row")
_STD_COLUMN = ("std",)
_PAIR_COLUMNS = ("clean_pixels", "clean_row")

# Unclipped noise is kept up to this many standard deviations; beyond it lies one value in 10^15.
_REACH = 8.0


@dataclass(frozen=True, kw_only=True)
class WrittenRelease:
    """What `write_release` made."""

    path: Path
    """The release."""
    pseudonyms: Path
    """The list that leads back to the cohort's images; it never leaves Site One."""
    record: ReleaseRecord
    earlier: int
    """Earlier releases of the cohort: their noise averages out with this one's."""


@dataclass(frozen=True)
class _Names:
    """Pseudonyms by row of the cohort, and the rows in the order of their pseudonyms."""

    images: list[str]
    patients: list[str]
    order: Rows


def write_release(
    cohort: Cohort,
    out: Path,
    *,
    noise: NoiseConfig,
    pairs: bool = False,
    seed: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> WrittenRelease:
    """Obfuscate a cohort into the new folder `out`, in a random order and under random names.

    The noise comes from the operating system's entropy, or from `seed`, which marks the release as subtractable.
    `pairs` puts the clean images beside the noisy ones. Clipped images keep the depth of the cohort; unclipped ones
    become uint16 over a range that reaches 8 standard deviations beyond [0, 1] + mean. `advance` is called with 1
    after each image. The list of pseudonyms goes into the cohort's folder, readable by its owner only.

    Nothing is left behind when it fails. Raises CohortError where the cohort is altered, DataError where `out` exists.
    """
    cohort.verify()
    release_id = secrets.token_hex(16)
    names = _draw_names(cohort)
    pseudonyms = cohort.path / PSEUDONYMS / f"{release_id}.csv"
    earlier = len(list(pseudonyms.parent.glob("*.csv")))
    with _pseudonym_list(pseudonyms, cohort, names), replacing_folder(out) as folder:
        noisy, clean = PixelWriter(folder, "noisy"), PixelWriter(folder, "clean")
        with (folder / INDEX_FILE).open("w", newline="", encoding="utf-8") as stream:
            index = csv.writer(stream, lineterminator="\n")
            index.writerow([*_COLUMNS, *(_STD_COLUMN if _drawn(noise) else ()), *(_PAIR_COLUMNS if pairs else ())])
            for row in names.order.tolist():
                index.writerow(_write_image(cohort, row, names, noise, seed, noisy, clean if pairs else None))
                if advance is not None:
                    advance(1)
        noisy.finish()
        clean.finish()
        record = ReleaseRecord(
            release_id=release_id,
            noise=ReleasedNoise(mean=noise.mean, std=noise.std, clip=noise.clip),
            quantisation=_quantisation(noise, noisy),
            subtractable=seed is not None,
            pairs=pairs,
            images={split: len(cohort.rows(split)) for split in SPLITS},
            patients={split: len({names.patients[row] for row in cohort.rows(split)}) for split in SPLITS},
            patients_unknown=cohort.record.patients_unknown,
            files=record_files(folder, [INDEX_FILE, *noisy.counts, *clean.counts]),
            digest="",
        )
        record = with_digest(record)
        write_json(folder / RELEASE_FILE, record.model_dump(mode="json"))
    return WrittenRelease(path=out, pseudonyms=pseudonyms, record=record, earlier=earlier)


def _draw_names(cohort: Cohort) -> _Names:
    pseudonym: dict[str, str] = {}
    patients = [pseudonym.setdefault(patient, secrets.token_hex(16)) for patient in cohort.patient_ids]
    images = [secrets.token_hex(16) for _ in range(len(cohort))]
    # Sorted by a random name, so neither the order of the rows nor that of the pixels says anything.
    return _Names(images, patients, np.argsort(np.array(images)).astype(np.int64))


def _write_image(
    cohort: Cohort,
    row: int,
    names: _Names,
    noise: NoiseConfig,
    seed: int | None,
    noisy: PixelWriter,
    clean: PixelWriter | None,
) -> list[object]:
    """Write one image, and its pair where `clean` is given; returns its line of the index."""
    pixels = cohort.gather(np.array([row]))[0]
    dtype = cohort.dtype(row)
    field, std = _draw(pixels.shape, noise, seed, cohort.image_id(row))
    levels = _quantise(pixels + np.float32(noise.mean) + np.float32(std) * field, noise, dtype)
    line: list[object] = [names.images[row], names.patients[row], SPLITS[cohort.split_codes[row]], *pixels.shape]
    line.extend(noisy.append(levels))
    if _drawn(noise):
        line.append(std)
    if clean is not None:
        line.extend(clean.append(to_levels(pixels, dtype)))
    return line


def _draw(shape: tuple[int, ...], noise: NoiseConfig, seed: int | None, image_id: str) -> tuple[FloatImage, float]:
    """A standard normal field, and the standard deviation of one image."""
    if seed is None:
        low, high = noise.std_range
        return entropy_normal(shape), low + (high - low) * (secrets.randbits(53) / 2**53)
    # A name that no draw of a training has, and that no other noise has: two levels of one noise field could be
    # subtracted from each other, which gives the image away without the seed.
    draw = keyed_draw(noise, seed=seed, epoch=0, image_id=f"release/{noise.mean}/{noise.std}/{noise.clip}/{image_id}")
    field = np.empty(shape, dtype=np.float32)
    fill_standard_normal(torch.from_numpy(field), key=draw.key)
    return field, draw.std


def _drawn(noise: NoiseConfig) -> bool:
    """Whether each image has a standard deviation of its own."""
    low, high = noise.std_range
    return low != high


def _scale(noise: NoiseConfig, dtype: np.dtype[Any]) -> Scale:
    if noise.clip:
        return full_scale(dtype)
    reach = _REACH * noise.std_range[1]
    low = min(0.0, noise.mean) - reach
    high = max(1.0, 1.0 + noise.mean) + reach
    return Scale(offset=low, step=(high - low) / np.iinfo(np.uint16).max)


def _quantise(noisy: FloatImage, noise: NoiseConfig, dtype: np.dtype[Any]) -> Levels:
    if noise.clip:
        return to_levels(noisy, dtype)
    scale = _scale(noise, dtype)
    top = np.iinfo(np.uint16).max
    levels: Levels = np.rint(np.clip((noisy - scale.offset) / scale.step, 0, top)).astype(np.uint16)
    return levels


def _quantisation(noise: NoiseConfig, noisy: PixelWriter) -> dict[Literal["uint8", "uint16"], Quantisation]:
    depths = {parse_name(name)[2] for name in noisy.counts}
    scales = {dtype.name: _scale(noise, dtype) for dtype in sorted(depths, key=str)}
    return {
        "uint8" if name == "uint8" else "uint16": Quantisation(offset=scale.offset, step=scale.step)
        for name, scale in scales.items()
    }


@contextmanager
def _pseudonym_list(path: Path, cohort: Cohort, names: _Names) -> Iterator[None]:
    """Write the list of pseudonyms before the release it belongs to; take it away again if there is to be none."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with replacing(path, mode=0o600) as part, part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["image_id", "patient_id", "original_image_id", "original_patient_id"])
            for row in names.order.tolist():
                writer.writerow([names.images[row], names.patients[row], cohort.image_id(row), cohort.patient_id(row)])
    except PermissionError:
        raise CohortError(
            f"cannot write the list of pseudonyms to {path.parent}: make the cohort's folder writable"
        ) from None
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
