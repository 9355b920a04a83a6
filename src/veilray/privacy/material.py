"""What an audit works on: the originals of a cohort with their labels, and the releases that were made of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from veilray.cohort.cohort import Cohort
from veilray.cohort.matching import original_of, read_pseudonyms
from veilray.cohort.records import INDEX_FILE
from veilray.cohort.release import Release
from veilray.cohort.table import iterate_index
from veilray.errors import CohortError, UsageError
from veilray.images.radiograph import FloatImage
from veilray.privacy.accounting import composed_std
from veilray.privacy.data import AuditData, Rows, Variant
from veilray.privacy.labels import known_labels
from veilray.privacy.results import AuditedRelease, NoiseWay

_WAYS: dict[str, NoiseWay] = {"entropy": "fresh", "seeded": "seeded", "secret": "secret"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Originals:
    """The audited images of a cohort."""

    data: AuditData
    rows: npt.NDArray[np.int64]
    """(N,): their rows in the cohort."""
    grey_step: float
    """One grey level of the coarsest of them, in units of the [0, 1] range."""
    left_out: tuple[str, ...]
    """Which images of the cohort are not among them, and why."""
    labels_known: tuple[str, ...]
    """Of how many of them sex, view and age are known, where that is not all."""
    labels_not_understood: tuple[str, ...]
    """Values of patients that could not be read, a few: for Site One only."""


def open_originals(cohort: Cohort, *, labels: Path | None = None, most: int | None = None) -> Originals:
    """The images of the size that most images of a cohort have, with the labels of its index or of a CSV file.

    `most`: so many of them at most, those of patients with several images first; UsageError below 2.

    Raises CohortError where the cohort is damaged, DataError for a file that `known_labels` refuses.
    """
    groups = cohort.groups(np.arange(len(cohort)))
    rows = max(groups, key=len)
    size = cohort.pixels.files[int(cohort.table.places[0].codes[rows[0]])].size
    others = len(cohort) - len(rows)
    left_out = [f"{others:,} images of another size than {size[0]} x {size[1]} pixels"] if others else []
    if most is not None and len(rows) > most:
        left_out.append(f"{len(rows) - most:,} images, so that the audit takes less time (--images {most})")
        rows = _several_first(cohort, rows, most)
    lines = _lines(cohort, rows)
    known = known_labels(lines, labels, where=cohort.path)
    told = json.dumps([known.labels.sex, known.labels.age, known.labels.view])
    depth = min(np.iinfo(cohort.dtype(int(row))).max for row in rows)
    data = AuditData(
        clean=lambda chosen: cohort.gather(rows[np.asarray(chosen)]),
        patient_ids=tuple(cohort.patient_id(int(row)) for row in rows),
        image_ids=tuple(cohort.image_id(int(row)) for row in rows),
        labels=known.labels,
        size=size,
        digest=hashlib.sha256(f"{cohort.digest}\n{rows.tolist()}\n{told}".encode()).hexdigest(),
        sets=tuple(line.get("split", "") for line in lines),
    )
    return Originals(
        data=data,
        rows=rows,
        grey_step=1.0 / float(depth),
        left_out=tuple(left_out),
        labels_known=known.of_how_many,
        labels_not_understood=known.not_understood,
    )


def release_variant(release: Release, cohort: Cohort, originals: Originals, *, name: str) -> Variant:
    """The images of a release, each at the row of its original, by the list of pseudonyms in the cohort's folder.

    Raises DataError where the list is missing or does not fit, CohortError where none of the originals is in it.
    """
    names = read_pseudonyms(release, cohort)
    place_of = {image_id: place for place, image_id in enumerate(originals.data.image_ids)}
    found: dict[int, int] = {}
    for row in range(len(release)):
        original = original_of(release, names, row)
        if original in place_of:
            found[place_of[original]] = row
    if not found:
        raise CohortError(f"{release.path} holds none of the audited images of {cohort.path}")
    places = sorted(found)
    at = np.full(len(originals.data), -1, dtype=np.int64)
    at[places] = [found[place] for place in places]
    sizes = {release.pixels.files[int(release.table.places[0].codes[at[place]])].size for place in places}
    if sizes != {originals.data.size}:
        raise CohortError(f"{release.path} has images of other sizes than its originals in {cohort.path}")

    def draw(rows: Rows, _: int) -> FloatImage:
        return release.gather_noisy(at[np.asarray(rows)])

    noise = release.noise
    return Variant(
        name=name,
        kind="noisy",
        draw=draw,
        digest=hashlib.sha256(f"{originals.data.digest}\n{release.digest}".encode()).hexdigest(),
        draws=1,
        mean=noise.single_mean,
        std=noise.std_range[0],
        clip=noise.clip,
        mixed=noise.std_range[0] != noise.std_range[1],
        rows=None if len(places) == len(originals.data) else tuple(places),
    )


def audited_release(release: Release, variant: Variant, data: AuditData) -> AuditedRelease:
    """How much of a release a variant has of it."""
    return AuditedRelease(
        digest=release.digest,
        variant=variant.name,
        noise=_WAYS[release.record.noise_source],
        audited=len(variant.available(data)),
        total=len(release),
    )


def release_name(release: Release) -> str:
    """How an audit names the images of a release."""
    noise = release.noise
    return f"release, noise {noise.std_text}" + ("" if noise.clip else ", not clamped")


def releases_together(releases: Sequence[Release], variants: Sequence[Variant], data: AuditData) -> list[float]:
    """The std that each image is left with over several releases, (N,); infinity for an image that is in none.

    Noise is independent in each release, so that inverse variances add up. That of one secret is nested and says no
    more than its least noisy level, but nothing in a release tells which secret it is of, so this is the safe side; the
    ledger knows. Noise from a seed is independent only for those who cannot guess the seed. `taken_for_granted` says
    both. A release that holds the clean images leaves nothing.
    """
    fields: list[list[list[float]]] = [[] for _ in range(len(data))]
    for release, variant in zip(releases, variants, strict=True):
        for row in variant.available(data).tolist():
            fields[row].append([0.0 if release.pairs else variant.std])
    return [composed_std(of_image) for of_image in fields]


def taken_for_granted(releases: Sequence[Release]) -> tuple[str, ...]:
    """What `releases_together` takes for granted of these releases, each a sentence without a full stop."""
    sources = {release.record.noise_source for release in releases}
    found = []
    if "secret" in sources:
        found.append(
            "Noise from a site's secret counts as independent in each release that no ledger knows of, as after a "
            "change of the secret: of one secret, the least noisy level alone would count (--keys)"
        )
    if "seeded" in sources:
        found.append(
            "Noise from a seed counts as independent in each release, which it is only for who cannot guess the seed: "
            "whoever does subtracts it, at every level of that seed, and nothing is left"
        )
    return tuple(found)


def _several_first(cohort: Cohort, rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """So many of the rows, ascending, by patients with several images, then by their order in the cohort."""
    if most < 2:
        raise UsageError(f"--images {most}: an audit takes two images or more")
    owners = [cohort.patient_id(int(row)) for row in rows]
    count = Counter(owners)
    alone = np.array([count[owner] == 1 for owner in owners])
    return np.sort(rows[np.argsort(alone, kind="stable")][:most])


def _lines(cohort: Cohort, rows: npt.NDArray[np.int64]) -> list[dict[str, str]]:
    """The lines of a cohort's index for some of its rows."""
    lines = list(iterate_index(cohort.path / INDEX_FILE))
    return [lines[row] for row in rows.tolist()]
