"""Cohorts of any size for benchmarks: a true index, and pixels that are noise or holes in a sparse file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

import veilray
from veilray.cohort.build import INDEX_COLUMNS
from veilray.cohort.cohort import Cohort
from veilray.cohort.pixels import PixelWriter
from veilray.cohort.records import COHORT_FILE, INDEX_FILE, CohortRecord, FileRecord, Preprocessing, with_digest
from veilray.cohort.split import SPLITS, Shares, assign
from veilray.files import sha256_file, write_json

SIDE = 256


def synthetic_cohort(folder: Path, images: int, *, sparse: bool, side: int = SIDE) -> Path:
    """A cohort of `side` x `side` images in 8 bits, two a patient; a sparse one takes no room on the disk.

    The digest recorded for the pixels is no true one: it opens, but it does not verify.
    """
    folder.mkdir(parents=True)
    pixels = _pixels(folder, images, sparse=sparse, side=side)
    splits = [assign(f"{number // 2:08}", seed=0, shares=Shares()) for number in range(images)]
    with (folder / INDEX_FILE).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, INDEX_COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for number in range(images):
            image = {"image_id": f"{number // 2:08}_{number % 2:03}", "patient_id": f"{number // 2:08}"}
            writer.writerow(image | {"split": splits[number], "pixels": pixels, "row": number, "sha256": "0" * 64})
    size = (folder / pixels).stat().st_size
    index = folder / INDEX_FILE
    record = CohortRecord(
        veilray=veilray.__version__,
        preprocessing=Preprocessing(
            size=side, resampling="bicubic with antialiasing", shares=str(Shares()), split_seed=0, split_file=None
        ),
        images={split: splits.count(split) for split in SPLITS},
        patients={split: splits[::2].count(split) for split in SPLITS},
        patients_unknown=0,
        rejected=0,
        left_out=0,
        files={
            INDEX_FILE: FileRecord(sha256=sha256_file(index), size=index.stat().st_size),
            pixels: FileRecord(sha256="0" * 64, size=size),
        },
        digest="",
    )
    write_json(folder / COHORT_FILE, with_digest(record).model_dump(mode="json"))
    return Cohort.open(folder).path


def _pixels(folder: Path, images: int, *, sparse: bool, side: int) -> str:
    generator = np.random.default_rng(0)
    writer = PixelWriter(folder, "pixels")
    for _ in range(1 if sparse else images):
        name, _ = writer.append(generator.integers(0, 256, (side, side), dtype=np.uint8))
    if sparse:
        writer.counts[name] = images
        with (folder / name).open("r+b") as stream:
            end = stream.seek(0, 2)
            stream.truncate(end + (images - 1) * side * side)
    writer.finish()
    return name
