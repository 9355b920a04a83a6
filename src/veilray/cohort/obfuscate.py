"""Write a release from a cohort: noise on the pixels, pseudonyms for the names, and the list of them kept at home."""

from __future__ import annotations

import csv
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from veilray.cohort.cohort import Cohort
from veilray.cohort.leaving import Box, Contents, Leaving, everything
from veilray.cohort.noise_source import NoiseSource, entropy_noise
from veilray.cohort.pixels import PixelWriter, Scale, full_scale
from veilray.cohort.records import (
    INDEX_FILE,
    RELEASE_FILE,
    Quantisation,
    ReleasedNoise,
    ReleaseRecord,
    record_files,
    with_digest,
)
from veilray.cohort.split import SPLITS, Split
from veilray.errors import CohortError
from veilray.files import replacing, replacing_folder, write_json
from veilray.images.radiograph import FloatImage, Levels
from veilray.obfuscation.config import NoiseConfig

PSEUDONYMS = "releases"
"""Folder inside a cohort for the lists of pseudonyms, `RELEASE_ID.csv`; they never leave Site One."""

# What the index of a release says of every image. The height and width are those of the released pixels: an original's
# own size could lead back to it.
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
    """Earlier releases of the cohort, by their lists of pseudonyms."""


def write_release(
    cohort: Cohort,
    out: Path,
    *,
    noise: NoiseConfig,
    source: NoiseSource | None = None,
    contents: Contents | None = None,
    pairs: bool = False,
    release_id: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> WrittenRelease:
    """Obfuscate images of a cohort into the new folder `out`.

    `source`: where the noise comes from, the operating system's entropy if None. `contents`: what leaves and under
    which names, everything under random names if None. `pairs` puts the clean images beside the noisy ones. Clipped
    images keep the depth of the cohort; unclipped ones become uint16 over a range that reaches 8 standard deviations
    beyond [0, 1] + mean. `advance` is called with 1 after each image. The list of pseudonyms goes into the cohort's
    folder, readable by its owner only.

    Nothing is left behind when it fails. Raises CohortError where the cohort is altered, DataError where `out` exists.
    """
    cohort.verify()
    source, contents = source or entropy_noise(noise), contents or everything(cohort)
    release_id = release_id or secrets.token_hex(16)
    pseudonyms = cohort.path / PSEUDONYMS / f"{release_id}.csv"
    earlier = len(list(pseudonyms.parent.glob("*.csv")))
    with _pseudonym_list(pseudonyms, cohort, contents), replacing_folder(out) as folder:
        noisy, clean = PixelWriter(folder, "noisy"), PixelWriter(folder, "clean") if pairs else None
        with (folder / INDEX_FILE).open("w", newline="", encoding="utf-8") as stream:
            index = csv.writer(stream, lineterminator="\n")
            index.writerow(index_columns(contents, noise, pairs=pairs))
            for image in contents.images:
                index.writerow(_write_image(cohort, image, noise, source, noisy, clean))
                if advance is not None:
                    advance(1)
        for writer in (noisy, clean):
            if writer is not None:
                writer.finish()
        record = describe(
            cohort, noise=noise, source=source.kind, contents=contents, pairs=pairs, release_id=release_id
        )
        names = [INDEX_FILE, *noisy.counts, *(clean.counts if clean else ())]
        record = with_digest(record.model_copy(update={"files": record_files(folder, names)}))
        write_json(folder / RELEASE_FILE, record.model_dump(mode="json"))
    return WrittenRelease(path=out, pseudonyms=pseudonyms, record=record, earlier=earlier)


def describe(
    cohort: Cohort, *, noise: NoiseConfig, source: str, contents: Contents, pairs: bool, release_id: str
) -> ReleaseRecord:
    """`release.json` as far as it is known before anything is written: all but the digests of the files."""
    sets: dict[Split, list[Leaving]] = {split: [] for split in SPLITS}
    for image in contents.images:
        sets[image.split_in(cohort)].append(image)
    rows = [image.row for image in contents.images]
    return ReleaseRecord.model_validate(
        {
            "release_id": release_id,
            "noise": ReleasedNoise(mean=noise.single_mean, std=noise.std, clip=noise.clip),
            "noise_source": source,
            "quantisation": _quantisation(noise, {released_dtype(cohort, row, noise) for row in rows}),
            "subtractable": source == "seeded",
            "pairs": pairs,
            "fields": contents.columns,
            "statement": _statement(source, pairs=pairs),
            "images": {split: len(images) for split, images in sets.items()},
            "patients": {split: len({image.patient for image in images}) for split, images in sets.items()},
            "patients_unknown": sum(cohort.patient_id(row) == cohort.image_id(row) for row in rows),
            "files": {},
            "digest": "",
        }
    )


def index_columns(contents: Contents, noise: NoiseConfig, *, pairs: bool) -> list[str]:
    """Columns of the release's index."""
    std = _STD_COLUMN if drawn(noise) else ()
    return [*_COLUMNS, *contents.columns, *std, *(_PAIR_COLUMNS if pairs else ())]


def released_shape(cohort: Cohort, row: int) -> tuple[int, int]:
    """Height and width of an image's pixels, in the cohort and in the release."""
    return cohort.pixels.files[int(cohort.table.places[0].codes[row])].size


def released_dtype(cohort: Cohort, row: int, noise: NoiseConfig) -> np.dtype[Any]:
    """uint8 or uint16: the depth of an image's noisy pixels."""
    return cohort.dtype(row) if noise.clip else np.dtype(np.uint16)


def blanked(pixels: FloatImage, boxes: Sequence[Box]) -> FloatImage:
    """The pixels of one image, (H, W), with rectangles made black, in place."""
    for box in boxes:
        pixels[box.top : box.top + box.height, box.left : box.left + box.width] = 0.0
    return pixels


def _write_image(
    cohort: Cohort,
    image: Leaving,
    noise: NoiseConfig,
    source: NoiseSource,
    noisy: PixelWriter,
    clean: PixelWriter | None,
) -> list[object]:
    """Write one image, and its pair where `clean` is given; returns its line of the index."""
    pixels = blanked(cohort.gather(np.array([image.row]))[0], image.blank)
    field, std = source.draw(image.row, (pixels.shape[0], pixels.shape[1]))
    dtype = cohort.dtype(image.row)
    line: list[object] = [image.image, image.patient, image.split_in(cohort), *pixels.shape]
    field += pixels
    field += np.float32(noise.single_mean)
    line.extend(noisy.append(_to_levels(field, _scale(noise, dtype), released_dtype(cohort, image.row, noise))))
    line.extend(image.values)
    if drawn(noise):
        line.append(std)
    if clean is not None:
        line.extend(clean.append(_to_levels(pixels, full_scale(dtype), dtype)))
    return line


def _to_levels(values: FloatImage, scale: Scale, dtype: np.dtype[Any]) -> Levels:
    # In place and in float32, which is off by less than 0.005 levels of 16 bits.
    values -= np.float32(scale.offset)
    values *= np.float32(1 / scale.step)
    np.rint(values, out=values)
    np.clip(values, 0, np.iinfo(dtype).max, out=values)
    levels: Levels = values.astype(dtype)
    return levels


def drawn(noise: NoiseConfig) -> bool:
    """Whether each image has a standard deviation of its own."""
    low, high = noise.std_range
    return low != high


def _scale(noise: NoiseConfig, dtype: np.dtype[Any]) -> Scale:
    if noise.clip:
        return full_scale(dtype)
    reach = _REACH * noise.std_range[1]
    low = min(0.0, noise.single_mean) - reach
    high = max(1.0, 1.0 + noise.single_mean) + reach
    return Scale(offset=low, step=(high - low) / np.iinfo(np.uint16).max)


def _quantisation(noise: NoiseConfig, depths: set[np.dtype[Any]]) -> dict[Literal["uint8", "uint16"], Quantisation]:
    scales = {dtype.name: _scale(noise, dtype) for dtype in sorted(depths, key=str)}
    return {
        "uint8" if name == "uint8" else "uint16": Quantisation(offset=scale.offset, step=scale.step)
        for name, scale in scales.items()
    }


def _statement(source: str, *, pairs: bool) -> str:
    if pairs:
        return "Holds the clean images beside the noisy ones: no image privacy whatever."
    if source == "seeded":
        return "Made from a seed, for research: whoever has seed and image ids subtracts the noise."
    return "Noisy images only. Pseudonymised personal data: whoever holds an original links it with certainty."


@contextmanager
def _pseudonym_list(path: Path, cohort: Cohort, contents: Contents) -> Iterator[None]:
    """Write the list of pseudonyms before the release it belongs to; take it away again if there is to be none."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with replacing(path, mode=0o600) as part, part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["image_id", "patient_id", "original_image_id", "original_patient_id"])
            for image in contents.images:
                originals = cohort.image_id(image.row), cohort.patient_id(image.row)
                writer.writerow([image.image, image.patient, *originals])
    except PermissionError:
        raise CohortError(
            f"cannot write the list of pseudonyms to {path.parent}: make the cohort's folder writable"
        ) from None
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
