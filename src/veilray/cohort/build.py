"""Import: from files, folders and archives to a cohort on disk, all of it or nothing."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Any

import veilray
from veilray.cohort.admission import Admission, Admitted
from veilray.cohort.lists import read_patients, read_split
from veilray.cohort.parcel import pack, unpack
from veilray.cohort.pixels import PixelWriter
from veilray.cohort.prepare import Prepared, Rejected, prepare
from veilray.cohort.records import (
    COHORT_FILE,
    INDEX_FILE,
    CohortRecord,
    IdFrom,
    Preprocessing,
    SplitFileRecord,
    record_files,
    with_digest,
)
from veilray.cohort.split import SPLITS, Shares, Split
from veilray.errors import CohortError, DataError, UsageError
from veilray.files import replacing, replacing_folder, sha256_file, write_json
from veilray.images.sources import find_images
from veilray.parallel.group import ALONE, Group, fails_together
from veilray.parallel.sharding import map_in_order
from veilray.parallel.workers import available_cores

REPORT_FILE = "import_report.csv"
MAX_SIZE = 16_384

INDEX_COLUMNS = (
    *("image_id", "patient_id", "split", "height", "width", "bit_depth", "sha256", "pixels", "row"),
    *("source", "format", "modality", "view", "sex", "age", "spacing_row", "spacing_column", "spacing_from"),
    *("burned_in", "date", "sop_instance_uid", "study_uid", "issuer"),
    *("low", "high", "inverted", "slope", "intercept", "photometric", "voi"),
    *("padding_first", "padding_last", "padded_pixels", "overlays"),
)
REPORT_COLUMNS = ("source", "image_id", "outcome", "reason")


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What came of an import."""

    path: Path
    """The cohort."""
    record: CohortRecord
    notes: list[str]
    """What the user should know, one sentence each."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What decides a cohort, apart from the radiographs."""

    size: int | None
    shares: Shares
    split_seed: int
    split_file: Path | None
    patients: Path | None
    id_from: IdFrom


def import_radiographs(
    sources: Iterable[str | Path],
    out: Path,
    *,
    size: int | None = 256,
    shares: Shares | None = None,
    split_seed: int = 0,
    split_file: Path | None = None,
    patients: Path | None = None,
    modalities: Collection[str] | None = None,
    id_from: IdFrom = "stem",
    workers: int | None = None,
    advance: Callable[[int], None] | None = None,
    group: Group = ALONE,
) -> ImportReport:
    """Read radiographs and write a cohort into the new folder `out`.

    `size`: height and width to resample to, or None to keep each image's own. `shares` and `split_seed` decide the
    split of patients, or `split_file` does (image_id, split). `patients`: a CSV file (image_id, patient_id, and more).
    `modalities`: DICOM modalities to take, or None for the reader's own choice. `id_from`: what names an image that
    is no DICOM, its file's stem or its path. `workers`: processes, or None for all cores. `advance` is called with 1
    after each file. Of a `group` each rank reads its share of the files, which all must see under the same names, and
    the lead writes the very cohort that one process would.

    The order of the files, and with it the cohort, does not depend on the number of workers. Where several images have
    one id, the first comes in. Nothing is left behind when the import fails or is interrupted, except that where no
    file was usable the reasons are written beside `out`. Raises DataError for bad input, UsageError for bad arguments.
    """
    with fails_together(group):
        if size is not None and not 8 <= size <= MAX_SIZE:
            raise UsageError(f"size {size}: choose between 8 and {MAX_SIZE} pixels, or native")
        plan = _Plan(
            size=size,
            shares=shares or Shares(),
            split_seed=split_seed,
            split_file=split_file,
            patients=patients,
            id_from=id_from,
        )
        given = [Path(source) for source in sources]
        parents = [f"{path.parent}{os.sep}" for path in given]
        listed = read_patients(patients) if patients else None
        admission = Admission(
            shares=plan.shares,
            seed=plan.split_seed,
            listed=read_split(split_file) if split_file else None,
            patients=listed.rows if listed else {},
            path_id=partial(_path_id, parents=parents),
        )
        items = find_images(given)
    read = partial(
        map_in_order,
        partial(prepare, size=size, modalities=modalities),
        items,
        group=group,
        workers=workers or max(1, available_cores() // group.local_world_size),
        label=lambda item: item.name,
        pack=pack,
        unpack=unpack,
    )
    record = _written(read, out, plan, admission, parents, group=group, advance=advance or (lambda count: None))
    unreadable = listed.unreadable if listed else {}
    notes = _notes(admission, plan, record, unreadable) if group.is_lead else []
    return ImportReport(path=out, record=record, notes=group.broadcast(notes))


def _written(
    read: Callable[[Callable[[Prepared | Rejected], None]], None],
    out: Path,
    plan: _Plan,
    admission: Admission,
    parents: Sequence[str],
    *,
    group: Group,
    advance: Callable[[int], None],
) -> CohortRecord:
    """What `read` gives the lead becomes the cohort `out`, on all ranks or on none."""
    record: CohortRecord | None = None
    with ExitStack() as stack:
        with fails_together(group):
            if group.is_lead:
                folder = stack.enter_context(replacing_folder(out))
                builder = stack.enter_context(_Builder(folder, admission, parents, id_from=plan.id_from))

        def consume(result: Prepared | Rejected) -> None:
            builder.add(result)
            advance(1)

        read(consume)
        with fails_together(group):
            if group.is_lead:
                builder.close()
                record = _finish(builder, plan, out)
                stack.close()  # gives the folder its name
    return CohortRecord.model_validate(group.broadcast(record and record.model_dump(mode="json")))


class _Builder:
    """The files of a cohort under way: pixels, index and report, written as the images come."""

    def __init__(self, folder: Path, admission: Admission, parents: Sequence[str], *, id_from: IdFrom) -> None:
        self.folder = folder
        self.parents = parents
        self.admission = admission
        self.id_from = id_from
        self.writer = PixelWriter(folder, "pixels")
        self.rejected = self.left_out = 0
        self.first_reason = ""
        self._open = ExitStack()

    def __enter__(self) -> _Builder:
        self._index = self._table(INDEX_FILE, INDEX_COLUMNS)
        self._report = self._table(REPORT_FILE, REPORT_COLUMNS)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Complete the tables; images can be added no more."""
        self._open.close()

    def add(self, result: Prepared | Rejected) -> None:
        """Take in one image, or note why not."""
        if isinstance(result, Rejected):
            self.rejected += 1
            self._note(result.source, "", "rejected", result.reason)
            return
        if self.id_from == "path" and not result.radiograph.acquisition.sop_instance_uid:
            name = _path_id(result.radiograph.source, parents=self.parents)
            result = replace(result, radiograph=replace(result.radiograph, image_id=name))
        decision = self.admission.decide(result)
        if isinstance(decision, Admitted):
            name, row = self.writer.append(result.levels)
            source = _short(result.radiograph.source, self.parents)
            self._index.writerow(_clean(_index_row(result, decision, name, row, source=source)))
        else:
            self.left_out += 1
            self._note(result.radiograph.source, result.radiograph.image_id, "left out", decision.reason)

    def _note(self, source: str, image_id: str, outcome: str, reason: str) -> None:
        self.first_reason = self.first_reason or f"{source}: {reason}"
        self._report.writerow(_clean([source, image_id, outcome, reason]))

    def _table(self, name: str, columns: Sequence[str]) -> Any:
        stream: IO[str] = self._open.enter_context(
            (self.folder / name).open("w", newline="", encoding="utf-8", errors="backslashreplace")
        )
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        return writer


def _short(source: str, parents: Sequence[str]) -> str:
    # From the given file or folder on, so that the digest does not depend on where the sources lay.
    return next((source.removeprefix(parent) for parent in parents if source.startswith(parent)), source)


def _path_id(source: str, *, parents: Sequence[str]) -> str:
    return str(PurePath(_short(source, parents)).with_suffix(""))


def _finish(builder: _Builder, plan: _Plan, out: Path) -> CohortRecord:
    """Check the whole and write `cohort.json`."""
    admission = builder.admission
    if not admission.images:
        raise _nothing_usable(builder, out)
    if plan.patients and not admission.found_listed:
        raise UsageError(f"{plan.patients} lists none of the images; an image id is a file's name without its ending")
    across = admission.patients_across_sets()
    if across:
        raise CohortError(
            f"{plan.split_file} puts {len(across)} patients into more than one set; all images of a patient belong in "
            "one"
        )
    builder.writer.finish()
    record = CohortRecord(
        veilray=veilray.__version__,
        id_from=plan.id_from,
        preprocessing=_preprocessing(plan),
        images={split: admission.images[split] for split in SPLITS},
        patients={split: admission.patients_in(split) for split in SPLITS},
        patients_unknown=admission.patients_unknown,
        rejected=builder.rejected,
        left_out=builder.left_out,
        files=record_files(builder.folder, [INDEX_FILE, *builder.writer.counts]),
        digest="",
    )
    record = with_digest(record)
    write_json(builder.folder / COHORT_FILE, record.model_dump(mode="json"))
    return record


def _preprocessing(plan: _Plan) -> Preprocessing:
    file = plan.split_file
    return Preprocessing(
        size="native" if plan.size is None else plan.size,
        resampling="none" if plan.size is None else "bicubic with antialiasing",
        shares=str(plan.shares),
        split_seed=plan.split_seed,
        split_file=SplitFileRecord(name=file.name, sha256=sha256_file(file)) if file else None,
    )


def _nothing_usable(builder: _Builder, out: Path) -> DataError:
    count = builder.rejected + builder.left_out
    if count == 0:
        return DataError("the sources hold no files; name radiographs, folders or archives that hold some")
    report = out.with_name(f"{out.name}.{REPORT_FILE}")
    with replacing(report) as part:
        part.write_bytes((builder.folder / REPORT_FILE).read_bytes())
    first = builder.first_reason
    return DataError(f"none of the {count} files could be used; every reason is in {report}, the first is: {first}")


def _index_row(image: Prepared, admitted: Admitted, pixels: str, row: int, *, source: str) -> list[object]:
    radiograph, acquisition = admitted.radiograph, asdict(admitted.radiograph.acquisition)
    spacing = acquisition.pop("spacing") or ("", "")
    age = acquisition.pop("age")
    acquisition |= {"spacing_row": spacing[0], "spacing_column": spacing[1], "age": "" if age is None else f"{age:.4g}"}
    intensity = asdict(radiograph.intensity)
    padding = intensity.pop("padding") or ("", "")
    intensity |= {"padding_first": padding[0], "padding_last": padding[1]}
    values: dict[str, object] = {
        "image_id": radiograph.image_id,
        "patient_id": admitted.patient_id,
        "split": admitted.split,
        "height": image.height,
        "width": image.width,
        "bit_depth": radiograph.bit_depth,
        "sha256": image.sha256,
        "pixels": pixels,
        "row": row,
        "source": source,
        "format": radiograph.format,
        "modality": radiograph.modality,
        "view": radiograph.view,
        **acquisition,
        **intensity,
    }
    return [values[column] for column in INDEX_COLUMNS]


def _clean(row: Sequence[object]) -> list[object]:
    # File names and header fields may hold line breaks and worse, which a table on a screen should not.
    return ["".join(c if c.isprintable() else "?" for c in v) if isinstance(v, str) else v for v in row]


def _notes(admission: Admission, plan: _Plan, record: CohortRecord, unreadable: dict[str, int]) -> list[str]:
    notes = [
        f"{count:,} values of {column} in {plan.patients} cannot be understood and count as unknown."
        for column, count in unreadable.items()
    ]
    if admission.clashes:
        notes.append(
            f"{admission.clashes:,} images were left out because a file in another folder has the same name: to name "
            "images by their paths, import with --id-from path."
        )
    if record.patients_unknown:
        notes.append(
            f"The patient of {record.patients_unknown:,} images is unknown: each counts as a patient of its own, so "
            "images of one patient may lie in several sets. Give their patients with --patients FILE.csv."
        )
    if record.rejected or record.left_out:
        notes.append(
            f"{record.rejected:,} files were rejected and {record.left_out:,} images left out; {REPORT_FILE} says why."
        )
    if admission.listed is not None:
        absent = admission.absent()
        if absent:
            some = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            notes.append(f"{len(absent):,} images of {plan.split_file} did not come in: {some}.")
    empty: list[Split] = [split for split in SPLITS if not record.images[split]]
    if empty:
        notes.append(f"No images in {' and '.join(empty)}: too few patients for the shares, or the split file says so.")
    return notes
