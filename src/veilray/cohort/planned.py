"""What a release would consist of, to the byte, before any of it is written."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator

from veilray.cohort.cohort import Cohort
from veilray.cohort.leaving import Contents
from veilray.cohort.obfuscate import drawn, index_columns, released_dtype, released_shape
from veilray.cohort.pixels import parse_name
from veilray.cohort.records import INDEX_FILE, FileRecord, ReleaseRecord
from veilray.obfuscation.config import NoiseConfig

DRAWN = "drawn when written"
"""In place of what is random and does not exist yet."""

_HEADER_BYTES = 128  # numpy's format 1.0: two blocks of 64 bytes


def planned_index(cohort: Cohort, contents: Contents, noise: NoiseConfig, *, pairs: bool) -> Iterator[dict[str, str]]:
    """The lines of the release's index, by column."""
    columns = index_columns(contents, noise, pairs=pairs)
    rows: Counter[str] = Counter()
    for image in contents.images:
        height, width = released_shape(cohort, image.row)
        names = [f"noisy-{height}x{width}-{released_dtype(cohort, image.row, noise).name}.npy"]
        names += [f"clean-{height}x{width}-{cohort.dtype(image.row).name}.npy"] if pairs else []
        places = [(name, rows[name]) for name in names]
        rows.update(names)
        line = [image.image, image.patient, image.split_in(cohort), height, width, *places[0]]
        line += [*image.values, *([DRAWN] if drawn(noise) else []), *(places[1] if pairs else ())]
        yield dict(zip(columns, map(str, line), strict=True))


def planned_files(
    cohort: Cohort, contents: Contents, noise: NoiseConfig, record: ReleaseRecord
) -> dict[str, tuple[int, int]]:
    """Images and bytes of each file but `release.json`, by name; the index's bytes are 0 where its std is not drawn."""
    counts: Counter[str] = Counter()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(index_columns(contents, noise, pairs=record.pairs))
    for line in planned_index(cohort, contents, noise, pairs=record.pairs):
        counts.update(line[column] for column in ("pixels", "clean_pixels") if column in line)
        writer.writerow(line.values())
    files = {INDEX_FILE: (len(contents.images), 0 if drawn(noise) else len(text.getvalue().encode()))}
    for name, count in sorted(counts.items()):
        height, width, dtype = parse_name(name)
        files[name] = count, _HEADER_BYTES + count * height * width * dtype.itemsize
    return files


def planned_record(record: ReleaseRecord, files: dict[str, tuple[int, int]]) -> ReleaseRecord:
    """`release.json` with the files named; their digests, which do not exist yet, are zeros."""
    named = {name: FileRecord(sha256="0" * 64, size=size) for name, (_, size) in files.items()}
    return record.model_copy(update={"files": named, "digest": "0" * 64})
