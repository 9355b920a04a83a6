"""A release and its originals, brought together at Site One by the list of pseudonyms that stayed with the cohort."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np

from veilray.cohort.cohort import Cohort
from veilray.cohort.obfuscate import PSEUDONYMS
from veilray.cohort.release import Release
from veilray.cohort.table import Place
from veilray.errors import DataError, UsageError


def read_pseudonyms(release: Release, cohort: Cohort) -> dict[str, str]:
    """Original image id by pseudonym; DataError where the cohort has no list of this release, or it is damaged."""
    path = cohort.path / PSEUDONYMS / f"{release.record.release_id}.csv"
    if not path.is_file():
        raise DataError(
            f"{cohort.path} has no list of pseudonyms of {release.path}: name the cohort that it was made from, at the "
            "site that made it"
        )
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return {line["image_id"]: line["original_image_id"] for line in csv.DictReader(stream)}
    except (KeyError, csv.Error, UnicodeDecodeError):
        raise DataError(f"{path} is not a list of pseudonyms; restore it from the backup") from None


def original_of(release: Release, names: dict[str, str], row: int) -> str:
    """The original's id of a row of a release; DataError where the list of pseudonyms lacks it."""
    original = names.get(release.image_id(row))
    if original is None:
        raise DataError(f"the list of pseudonyms of {release.path} lacks some of its images; make the release again")
    return original


def with_originals(release: Release, cohort: Cohort) -> Release:
    """A release with the originals of its images as the clean ones, as one made with pairs has them.

    Pseudonyms, sets and noisy pixels are the release's; the clean pixels are those of the cohort, where they lie.
    Raises UsageError where the release has clean images of its own, DataError where it was not made from this cohort,
    or the cohort's images have other sizes by now.
    """
    if release.pairs:
        raise UsageError(f"{release.path} holds its clean images: leave --originals out")
    names = read_pseudonyms(release, cohort)
    row_of = {image_id: row for row, image_id in enumerate(cohort.image_ids)}
    originals = [row_of.get(original_of(release, names, row), -1) for row in range(len(release))]
    if -1 in originals:
        raise DataError(f"{cohort.path} lacks originals of {release.path}: name the cohort that it was made from")
    clean = cohort.table.places[0]
    place = Place(codes=clean.codes[originals], rows=clean.rows[originals])
    released = release.table.places[0]
    sizes = np.array([file.size for file in release.pixels.files])[released.codes]
    if not np.array_equal(sizes, np.array([file.size for file in cohort.pixels.files])[place.codes]):
        raise DataError(f"{release.path} has images of other sizes than its originals in {cohort.path}")
    table = replace(release.table, places=(released, place))
    return replace(release, table=table, clean_pixels=cohort.pixels)
