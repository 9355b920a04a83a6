"""What may be sealed: releases, models, denoised images and means of evaluations. Everything else stays."""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from veilray.cohort.records import COHORT_FILE, RELEASE_FILE, ReleaseRecord
from veilray.cohort.release import Release
from veilray.errors import DataError, RefusedError
from veilray.exchange.ledger.records import Evaluated, Model
from veilray.exchange.sealing.bundle import open_source
from veilray.exchange.sealing.manifest import Kind
from veilray.inference.record import DENOISED_RECORD, DenoisedBatch, read_denoised

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What a PNG of Veilray's consists of: no text, no time, nothing private (PNG third edition, 11).
_PNG_CHUNKS = {b"IHDR", b"IDAT", b"IEND"}
_PSEUDONYM = re.compile(r"[0-9a-f]{32}\.png")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was found in a folder to be sealed."""

    kind: Kind
    folder: Path
    names: tuple[str, ...]
    """Files, in the order of the bundle."""
    notes: tuple[str, ...] = ()
    """What whoever sends it must know."""
    release: ReleaseRecord | None = None
    """What the ledger is asked about a release."""
    denoised: tuple[DenoisedBatch, ...] = ()
    """Whose releases the ledger is asked about."""
    model: Model | None = None
    """What the ledger is told of a model."""
    evaluated: Evaluated | None = None
    """What the ledger is told of an evaluation."""


@contextmanager
def sealable(source: Path, *, near: Path) -> Iterator[Source]:
    """What a folder gives to be sealed; models and evaluations are exported into a hidden folder in `near` meanwhile.

    Raises RefusedError for a folder that is none of the four kinds, above all a cohort, whose images are clean, and for
    an evaluation on few patients; DataError where one is damaged or holds files that do not belong to it.
    """
    if not source.is_dir():
        raise DataError(f"{source} is missing or not a folder; seal a release, a run, denoised images or an evaluation")
    if (source / COHORT_FILE).exists():
        raise RefusedError(f"{source} is a cohort, which holds clean images; make a release: veilray obfuscate")
    if (source / RELEASE_FILE).is_file():
        yield _release(source)
    elif (source / DENOISED_RECORD).is_file():
        yield _denoised(source)
    elif (source / "config.toml").is_file():
        with _hidden(near) as folder:
            yield _model(source, folder)
    elif (source / "evaluation" / "summary.json").is_file():
        with _hidden(near) as folder:
            yield _evaluation(source, folder)
    else:
        raise RefusedError(
            f"{source} is neither a release nor a run nor a folder of denoised images nor an evaluation; nothing else "
            "may be sealed"
        )


@contextmanager
def _hidden(near: Path) -> Iterator[Path]:
    near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sealing.", suffix=".part", dir=near) as folder:
        yield Path(folder)


def _model(run: Path, folder: Path) -> Source:
    # Only here: it brings torch, and 200 MB of memory, which a release does without.
    from veilray.exchange.sealing.model_export import export_model, training_digest
    from veilray.models.exported import MODEL_FILES

    record = export_model(run, folder)
    model = Model(
        weights_sha256=record.weights_sha256,
        training_digest=training_digest(run),
        images=record.data.train_images + record.data.validation_images,
        patients=record.data.train_patients + record.data.validation_patients,
    )
    return Source(kind="model", folder=folder, names=MODEL_FILES, model=model)


def _evaluation(source: Path, folder: Path) -> Source:
    from veilray.exchange.sealing.evaluation_export import EVALUATION_FILES, export_evaluation

    record, summary = export_evaluation(source, folder)
    evaluated = Evaluated(
        weights_sha256=record.weights_sha256, release_id=record.release_id, release_digest=summary.cohort_digest
    )
    return Source(kind="evaluation", folder=folder, names=EVALUATION_FILES, evaluated=evaluated)


def _release(folder: Path) -> Source:
    release = Release.open(folder)
    release.verify()
    names = (RELEASE_FILE, *release.record.files)
    _refuse_others(folder, names)
    notes = []
    if release.pairs:
        notes.append("The clean images are in it: it hides nothing from whoever receives it.")
    if release.record.subtractable:
        notes.append("Its noise was made from a seed: whoever learns or guesses the seed can subtract it.")
    return Source(kind="release", folder=folder, names=names, notes=tuple(notes), release=release.record)


def _denoised(folder: Path) -> Source:
    record = read_denoised(folder)
    clear = [name for name in record.files if not _PSEUDONYM.fullmatch(name)]
    if clear:
        raise RefusedError(
            f"{len(clear)} images in {folder} have names that are no pseudonyms of a release; only images denoised "
            "from a release may be sealed"
        )
    if any(batch.release is None for batch in record.batches):
        raise RefusedError(
            f"{folder / DENOISED_RECORD} names images that were not denoised from a release; denoise the release itself"
        )
    names = (DENOISED_RECORD, *record.files)
    _refuse_others(folder, names)
    for name in record.files:
        _check_png(folder, name)
    return Source(kind="denoised", folder=folder, names=names, denoised=record.batches)


def _refuse_others(folder: Path, names: tuple[str, ...]) -> None:
    """DataError where a folder holds more than the given files, or fewer."""
    present = {file.name for file in folder.iterdir()}
    if missing := sorted(set(names) - present):
        raise DataError(f"{folder / missing[0]} is missing; make the folder again")
    if others := sorted(present - set(names)):
        raise DataError(f"{folder / others[0]} does not belong there; move it away, and seal again")


def _check_png(folder: Path, name: str) -> None:
    """RefusedError where a PNG holds more than pixels, DataError where it is none."""
    with open_source(folder, name) as stream:
        data_left = stream.seek(0, 2)
        stream.seek(0)
        if stream.read(8) != _PNG_SIGNATURE:
            raise DataError(f"{folder / name} is not a PNG; denoise again")
        place, kind = 8, b""
        while place + 12 <= data_left and kind != b"IEND":
            stream.seek(place)
            length, kind = struct.unpack(">I4s", stream.read(8))
            if kind not in _PNG_CHUNKS:
                raise RefusedError(f"{folder / name} holds more than pixels; denoise again, and seal what that wrote")
            place += 12 + length
    if kind != b"IEND" or place != data_left:
        raise DataError(f"{folder / name} is damaged; denoise again")
