"""De-identification by allow-list: the few coded fields that a release may carry, and for whom they are left out.

What is not built here does not leave, so nothing has to be found and removed. After DICOM PS3.15 annex E in intent,
without claiming its conformance. Rare combinations of fields are coarsened until at least `k` patients share each, or
the field is dropped (after k-anonymity, Sweeney 2002; it bounds what the fields single out and nothing else).
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal, get_args

from veilray.images.acquisition import parse_view

Field = Literal["view", "spacing", "sex", "age", "days", "study"]
FIELDS: tuple[Field, ...] = get_args(Field)
"""Everything a release may say of an image beside its pixels, its set and its size."""

DEFAULT_FIELDS: tuple[Field, ...] = ("view", "spacing")
LINKS: frozenset[Field] = frozenset({"days", "study"})
"""What ties images of one patient to each other; no part of the combinations that patients share."""

K = 5
"""Patients that must share a combination of fields."""

TOP_AGE = 90

# What a rare combination loses, step by step; each step keeps what the ones before it took.
_SPACING, _COARSE_AGE, _AGE, _SEX, _VIEW = range(1, 6)
_SUPPRESSED = _VIEW


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What Site One knows of an image that could bear on a release."""

    patient: str
    matrix: str
    """Height, width and depth of the released pixels; they are visible whatever is suppressed."""
    view: str = ""
    spacing: tuple[float, float] | None = None
    """Of the released pixels, in mm."""
    sex: str = ""
    age: float | None = None
    date: str = ""
    """YYYY-MM-DD."""
    study: str = ""
    """Pseudonym of its study."""


@dataclass(frozen=True, kw_only=True)
class Coded:
    """What leaves of it; empty where it is unknown, not asked for, or suppressed."""

    view: str = ""
    spacing: str = ""
    """`ROW x COLUMN` in mm, to 0.01."""
    sex: str = ""
    age: str = ""
    """Decade as 60-69, or 20 years as 60-79, or 90+ (80+ in 20 years)."""
    days: str = ""
    """Whole days since the patient's first image in this release."""
    study: str = ""
    """Pseudonym of its study, which its other images share."""


@dataclass(frozen=True, kw_only=True)
class Deidentified:
    """The coded fields of every image, in the order given, and what was done to get there."""

    coded: list[Coded | None]
    """None: the image must stay, since its size alone would single it out."""
    notes: list[str]
    """What was coarsened or suppressed, one sentence each, without saying for whom."""


_Cells = defaultdict[tuple[str, Coded], set[str]]  # patients by size and coded fields


def deidentify(
    images: Sequence[Facts], *, fields: Sequence[Field] = DEFAULT_FIELDS, k: int = K, keep_rare_sizes: bool = False
) -> Deidentified:
    """Code the fields asked for, and coarsen until at least `k` patients share each combination of them and the size.

    All images of a patient are treated alike, since its pseudonym links them. Where releases hold several sizes, images
    of a size that fewer than `k` patients have are withheld unless `keep_rare_sizes`. The result depends on the images
    alone, not on their order. `days` and `study` are no part of the combinations.
    """
    withheld = set() if keep_rare_sizes else _rare_sizes(images, k)
    kept = [image for image in images if image.matrix not in withheld]
    levels = _levels(kept, fields, k)
    days = _days(kept) if "days" in fields else {}
    coded = [
        None
        if image.matrix in withheld
        else replace(
            _code(image, fields, levels[image.patient]),
            days=days.get((image.patient, image.date), ""),
            study=image.study if "study" in fields else "",
        )
        for image in images
    ]
    return Deidentified(coded=coded, notes=_notes(images, coded, fields, k))


def age_band(age: float, *, years: int = 10) -> str:
    """The band of an age in whole years: decades, or `years` wide; 90 and above are one, with whatever shares it."""
    low = min(int(age), TOP_AGE) // years * years
    return f"{low}+" if low + years > TOP_AGE else f"{low}-{low + years - 1}"


def _rare_sizes(images: Sequence[Facts], k: int) -> set[str]:
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for image in images:
        patients[image.matrix].add(image.patient)
    # A single size tells nobody from anybody.
    return {size for size, members in patients.items() if len(members) < k} if len(patients) > 1 else set()


def _levels(images: Sequence[Facts], fields: Sequence[Field], k: int) -> dict[str, int]:
    """How far each patient's fields are coarsened, 0 to 5, until no combination is rare or nothing is left to lose.

    Round by round, what fewer than `k` patients share is mended in one of two ways. Its patients climb: they lose the
    next thing. Or others join them: patients who show more, but would look the same if they showed as little, and whom
    these would stand out from by showing less. Who joins loses what it need not have lost, so only as many do as are
    missing, and only in rounds in which nobody climbs. Levels never fall, so this ends.
    """
    level = dict.fromkeys((image.patient for image in images), 0)

    @functools.cache
    def sharing_if_all_were(at: int) -> _Cells:
        return _sharing(images, fields, dict.fromkeys(level, at))

    while True:
        climbing: set[str] = set()
        joining: dict[str, int] = {}
        for cell, members in _sharing(images, fields, level).items():
            missing = k - len(members)
            if missing <= 0:
                continue
            at = max(level[patient] for patient in members)  # those of one cell may have lost more than it shows
            others = {patient for patient in sharing_if_all_were(at)[cell] - members if level[patient] < at}
            if len(others) < missing and at < _SUPPRESSED:
                climbing |= members
                continue
            for patient in sorted(others)[:missing]:
                joining[patient] = max(at, joining.get(patient, 0))
        if not climbing and not joining:
            return level
        level.update({patient: level[patient] + 1 for patient in climbing} or joining)


def _sharing(images: Sequence[Facts], fields: Sequence[Field], level: Mapping[str, int]) -> _Cells:
    """The patients that share each combination of size and fields, where each is coarsened to its level."""
    cells: _Cells = defaultdict(set)
    for image in images:
        cells[image.matrix, _code(image, fields, level[image.patient])].add(image.patient)
    return cells


def _code(image: Facts, fields: Sequence[Field], level: int) -> Coded:
    """The fields asked for but the links, at a level of coarseness."""
    years = None if image.age is None else int(image.age)
    return _coded(image.view, image.spacing, image.sex, years, tuple(fields), level)


@functools.lru_cache(maxsize=4096)
def _coded(
    view: str, spacing: tuple[float, float] | None, sex: str, age: int | None, fields: tuple[Field, ...], level: int
) -> Coded:
    whole = Coded(
        view=parse_view(view) if level < _VIEW else "",
        spacing=f"{spacing[0]:.2f} x {spacing[1]:.2f}" if spacing and level < _SPACING else "",
        sex=sex if level < _SEX else "",
        age="" if age is None or level >= _AGE else age_band(age, years=20 if level == _COARSE_AGE else 10),
    )
    return replace(whole, **dict.fromkeys(set(FIELDS) - set(fields), ""))


def _days(images: Sequence[Facts]) -> dict[tuple[str, str], str]:
    """Days since the patient's first image, by patient and date."""
    first: dict[str, str] = {}
    for image in images:
        if image.date:
            first[image.patient] = min(first.get(image.patient, image.date), image.date)
    return {
        (image.patient, image.date): str(
            (date.fromisoformat(image.date) - date.fromisoformat(first[image.patient])).days
        )
        for image in images
        if image.date
    }


def _notes(images: Sequence[Facts], coded: Sequence[Coded | None], fields: Sequence[Field], k: int) -> list[str]:
    notes = []
    withheld = sum(code is None for code in coded)
    if withheld:
        notes.append(
            f"{withheld:,} images stay here: fewer than {k} patients have images of their size. Import with --size, or "
            "release them all the same with --keep-rare-sizes."
        )
    dropped: Counter[str] = Counter()
    coarsened = 0
    for image, code in zip(images, coded, strict=True):
        if code is not None:
            whole = _code(image, fields, 0)
            lost = [name for name in FIELDS if name not in LINKS and getattr(whole, name) and not getattr(code, name)]
            dropped.update(lost)
            coarsened += bool(code.age) and code.age != whole.age
    few = f"fewer than {k} patients share the combination"
    notes += [f"{name} is left out of {count:,} images: {few}." for name, count in sorted(dropped.items())]
    if coarsened:
        notes.append(f"age is given in bands of 20 years in {coarsened:,} images: {few}.")
    return notes
