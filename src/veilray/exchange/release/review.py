"""Before the noise: images that may hold burned-in text are kept back until a person has looked at them."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from veilray.cohort.cohort import Cohort
from veilray.cohort.leaving import Box
from veilray.cohort.lists import read_image_ids, read_rows
from veilray.cohort.obfuscate import blanked
from veilray.errors import DataError, UsageError
from veilray.exchange.ledger.likeness import likeness
from veilray.exchange.release.burned_in import find_text
from veilray.exchange.release.originals import Original
from veilray.files import replacing

QUARANTINE = "quarantine.csv"
"""Inside a cohort: what the last release kept back, for review. It never leaves Site One."""

_COLUMNS = ("image_id", "source", "reason", "x", "y", "width", "height")


@dataclass(frozen=True, kw_only=True)
class Blanks:
    """Rectangles to be made black, in the pixels of the originals as displayed: left, top, width, height."""

    everywhere: tuple[tuple[int, int, int, int], ...] = ()
    by_image: Mapping[str, Sequence[tuple[int, int, int, int]]] = field(default_factory=dict)
    """By image id."""

    def boxes(self, original: Original) -> tuple[Box, ...]:
        """Rectangles of one image in the cohort's pixels, rounded outwards; those that miss the image are dropped."""
        boxes = (_scaled(one, original) for one in (*self.everywhere, *self.by_image.get(original.image_id, ())))
        return tuple(sorted({box for box in boxes if box.height > 0 and box.width > 0}))


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a look at one image's pixels before the noise found."""

    reason: str
    """Why it is kept back; empty if it is not."""
    regions: tuple[Box, ...]
    """What looks like text, in the cohort's pixels."""
    likeness: bytes


def parse_blank(text: str) -> tuple[int, int, int, int]:
    """A rectangle from `X,Y,WIDTH,HEIGHT`; UsageError for anything else."""
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        x = y = width = height = -1
    if min(x, y) < 0 or min(width, height) < 1:
        raise UsageError(f"rectangle {text!r}: write X,Y,WIDTH,HEIGHT in pixels of the original, such as 0,0,200,40")
    return x, y, width, height


def read_blanks(path: Path) -> dict[str, list[tuple[int, int, int, int]]]:
    """Rectangles by image id from a CSV file with image_id, x, y, width, height; UsageError or DataError if it is none.

    Lines without a rectangle are passed over, so that a list of quarantined images can be edited and given back.
    """
    found: defaultdict[str, list[tuple[int, int, int, int]]] = defaultdict(list)
    for line, row in read_rows(path):
        missing = [name for name in ("x", "y", "width", "height") if name not in row]
        if missing:
            raise DataError(f"{path} has no column {missing[0]}")
        numbers = [row[name] for name in ("x", "y", "width", "height")]
        if any(numbers):
            try:
                found[row["image_id"]].append(parse_blank(",".join(numbers)))
            except UsageError as error:
                raise DataError(f"{path}, line {line}: {error}") from None
    return dict(found)


def look(
    cohort: Cohort,
    originals: Sequence[Original],
    blanks: Blanks,
    *,
    reviewed: Path | None,
    advance: Callable[[int], None] | None = None,
) -> Iterator[Looked]:
    """Look at every image, in the order given. `reviewed`: a CSV file whose image_id column lists what may leave.

    Raises DataError where an image is listed that the cohort does not hold.
    """
    passed = read_image_ids(reviewed) if reviewed else set()
    unknown = (passed | set(blanks.by_image)) - {original.image_id for original in originals}
    if unknown:
        raise DataError(f"{len(unknown):,} of the images listed for review or blanking are not in {cohort.path}")
    for original in originals:
        pixels = blanked(cohort.gather(np.array([original.row]))[0], blanks.boxes(original))
        regions = () if original.image_id in passed else tuple(find_text(pixels))
        reason = "it has regions that look like text" if regions else ""
        if original.burned_in == "YES" and original.image_id not in passed:
            reason = "its header says Burned In Annotation (0028,0301) YES"
        yield Looked(reason=reason, regions=regions, likeness=likeness(pixels))
        if advance is not None:
            advance(1)


def write_quarantine(cohort: Cohort, kept_back: Sequence[tuple[Original, Looked]]) -> Path:
    """Write the list of images kept back into the cohort's folder, readable by its owner only; replaces the last one.

    One line for each region, in the pixels of the original. With what may leave deleted or corrected it serves as
    `--blank-file`, and with what may not deleted, as `--reviewed`.
    """
    path = cohort.path / QUARANTINE
    with replacing(path, mode=0o600) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for original, looked in kept_back:
            rectangles: list[tuple[object, ...]] = [_native(box, original) for box in looked.regions]
            for rectangle in rectangles or [("", "", "", "")]:
                writer.writerow([original.image_id, original.source, looked.reason, *rectangle])
    return path


def _scaled(rectangle: tuple[int, int, int, int], original: Original) -> Box:
    x, y, width, height = rectangle
    down, across = (kept / native for kept, native in zip(original.kept_size, original.size, strict=True))
    top, left = math.floor(y * down), math.floor(x * across)
    bottom = min(original.kept_size[0], math.ceil((y + height) * down))
    right = min(original.kept_size[1], math.ceil((x + width) * across))
    return Box(top, left, bottom - top, right - left)


def _native(box: Box, original: Original) -> tuple[int, int, int, int]:
    down, across = (native / kept for kept, native in zip(original.kept_size, original.size, strict=True))
    return (
        math.floor(box.left * across),
        math.floor(box.top * down),
        math.ceil(box.width * across),
        math.ceil(box.height * down),
    )
