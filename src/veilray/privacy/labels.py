"""What is known of the images beside their pixels: sex, age and view, by a cohort's index or by a file of labels."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from veilray.errors import DataError
from veilray.images.acquisition import parse_age, parse_sex
from veilray.privacy.data import Labels

Line = dict[str, str]
"""A line of an index or of a file of labels, by column."""

_NOTHING = frozenset({"", "?", "-", "NA", "N/A", "NAN", "NONE", "NULL", "U", "UNKNOWN"})
"""What stands for an unknown value, in capitals."""

_SHOWN = 3
_LONGEST = 20


@dataclass(frozen=True, kw_only=True)
class Known:
    """Labels, and what there is to say of them."""

    labels: Labels
    of_how_many: tuple[str, ...]
    """Of how many images each label is known, where that is not all; nothing where no label is known of any."""
    not_understood: tuple[str, ...]
    """Values that could not be read, a few for each label: of patients, so for Site One only and never in results."""


def known_labels(lines: Sequence[Line], path: Path | None, *, where: Path) -> Known:
    """The labels of images by their lines in the index of the cohort in `where`, or in a CSV file.

    The file names images in a column `image_id`, or `file`, of which the stem counts; it has any of the columns `sex`,
    `age` and `view` or `view_position`. Raises DataError for a file that is not such a list, that names none of the
    images, or that says different things of one of them.
    """
    told = _read_labels(path) if path is not None else {}
    own = [_told_of(line, told, path) for line in lines]
    if path is not None and not any(own):
        raise DataError(f"{path} names none of the images of {where}; its image_id or file must be theirs")
    values = [_values(of_file or line) for of_file, line in zip(own, lines, strict=True)]
    sex, age, view = (tuple(of_image[place] for of_image in values) for place in range(3))
    labels = Labels(
        sex=tuple(parse_sex(text) or None for text in sex),
        age=tuple(parse_age(text) for text in age),
        view=tuple(None if text in _NOTHING else text for text in view),
    )
    return Known(
        labels=labels,
        of_how_many=_counted(labels, of_index_alone=path is None),
        not_understood=(*_unread("sex", sex, labels.sex), *_unread("age", age, labels.age)),
    )


def _values(line: Line) -> tuple[str, str, str]:
    """Sex, age and view as a line has them, in capitals."""
    view = line.get("view") or line.get("view_position") or ""
    sex, age, view = ((text or "").strip().upper() for text in (line.get("sex"), line.get("age"), view))
    return sex, age, view


def _counted(labels: Labels, *, of_index_alone: bool) -> tuple[str, ...]:
    total = len(labels.sex)
    counts = labels.counts()
    if of_index_alone and not any(counts.values()):
        return ()
    return tuple(f"{name} known of {count:,} of {total:,} images" for name, count in counts.items() if count < total)


def _unread(name: str, texts: Sequence[str], read: Sequence[str | float | None]) -> tuple[str, ...]:
    """A sentence on the values of one label that stand for something and were not understood."""
    wrong = [text for text, value in zip(texts, read, strict=True) if value is None and text not in _NOTHING]
    if not wrong:
        return ()
    different = list(dict.fromkeys(wrong))
    shown = ", ".join(text[:_LONGEST] for text in different[:_SHOWN]) + (", ..." if len(different) > _SHOWN else "")
    return (f"{name} not understood of {len(wrong):,} images: {shown}",)


def _told_of(line: Line, told: dict[str, list[Line]], path: Path | None) -> Line | None:
    """The line of a file of labels that speaks of an image; DataError where several do and say different things."""
    source = line.get("source", "")
    found = told.get(source) or told.get(line["image_id"]) or []
    if _differ(found):
        shared = [_shared_folders(one.get("file") or "", source) for one in found]
        found = [one for one, count in zip(found, shared, strict=True) if count == max(shared)]
    if _differ(found):
        raise DataError(
            f"{path} says different things of the sex, age or view of {line['image_id']}, in {len(found)} lines; write "
            f"one for each image, its file with the folder as in the cohort's index ({source})"
        )
    return found[0] if found else None


def _differ(lines: Sequence[Line]) -> bool:
    said = {(parse_sex(sex), parse_age(age), view) for sex, age, view in map(_values, lines)}
    return len(said) > 1


def _shared_folders(file: str, source: str) -> int:
    """How many folders, from the last one up, two paths have in common."""
    count = 0
    for one, other in zip(reversed(PurePath(file).parts[:-1]), reversed(PurePath(source).parts[:-1]), strict=False):
        if one != other:
            break
        count += 1
    return count


def _read_labels(path: Path) -> dict[str, list[Line]]:
    """Lines of a file of labels by file name, by its stem and by image id."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = set(reader.fieldnames or ())
            if not columns & {"image_id", "file"} or not columns & {"sex", "age", "view", "view_position"}:
                raise DataError(f"{path} needs a column image_id or file, and any of sex, age, view, with commas")
            found: dict[str, list[Line]] = {}
            for line in reader:
                file = line.get("file") or ""
                for key in {file, Path(file).stem, line.get("image_id") or ""} - {""}:
                    found.setdefault(key, []).append(line)
            return found
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a file of labels ({error})") from None
