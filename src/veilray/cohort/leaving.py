"""Which images of a cohort leave in a release, under which names, and what is said of each."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from veilray.cohort.cohort import Cohort
from veilray.cohort.split import SPLITS, Split


class Box(NamedTuple):
    """A rectangle in the cohort's pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """One image that leaves."""

    row: int
    """In the cohort."""
    image: str
    """Its pseudonym: 32 hexadecimal digits."""
    patient: str
    """Its patient's pseudonym."""
    values: tuple[str, ...] = ()
    """What is said of it, by `Contents.columns`."""
    blank: tuple[Box, ...] = ()
    """Rectangles that are made black before the noise."""
    split: Split | None = None
    """Its set; None for the cohort's, which whoever guesses an id and the seed can work out."""

    def split_in(self, cohort: Cohort) -> Split:
        """The set that the release says."""
        return SPLITS[cohort.split_codes[self.row]] if self.split is None else self.split


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What leaves, in the order in which it is released."""

    images: Sequence[Leaving]
    columns: tuple[str, ...] = ()
    """Columns of the release's index that say something of an image, beyond its names, set, size and place."""


def in_order(images: Sequence[Leaving]) -> list[Leaving]:
    """Sorted by pseudonym, so that neither the order of the rows nor that of the pixels says anything."""
    return sorted(images, key=lambda image: image.image)


def everything(cohort: Cohort) -> Contents:
    """All images of a cohort under random names, which nobody can repeat, and nothing else said of them."""
    pseudonym: dict[str, str] = {}
    images = [
        Leaving(row=row, image=secrets.token_hex(16), patient=pseudonym.setdefault(patient, secrets.token_hex(16)))
        for row, patient in enumerate(cohort.patient_ids)
    ]
    return Contents(images=in_order(images))
