"""Run a benchmark plan: every training in a process of its own, one after another, each scored on the test set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import IO

import torch

from veilray.cohort.cohort import Cohort
from veilray.cohort.open import open_data
from veilray.cohort.release import Release
from veilray.errors import CohortError, UsageError, VeilrayError
from veilray.evaluation.benchmark.hardware import impossible, load_per_core, peak_of
from veilray.evaluation.benchmark.plan import BenchmarkPlan, PlannedRun, expand, write_plan
from veilray.evaluation.benchmark.process import Ended, count_start, locked, run_process
from veilray.evaluation.benchmark.record import (
    Arithmetic,
    RunRecord,
    Timings,
    begin_record,
    config_digest,
    read_record,
    write_record,
)
from veilray.evaluation.benchmark.workload import training_operations
from veilray.evaluation.evaluate import evaluate_run
from veilray.evaluation.results import MODEL, read_summary
from veilray.evaluation.scoring import Perceptual
from veilray.files import write_text
from veilray.training.config import dump_config
from veilray.training.data import TrainingImages, holds_clean
from veilray.training.run import EpochRecord, RunFolder

LOCK_WAIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the runs of one call share."""

    out: Path
    path: Path
    """Folder of the data."""
    data: Cohort | Release
    device: torch.device
    perceptual: Perceptual
    lock: IO[bytes]
    note: Callable[[str], None]


def run_plan(
    plan: BenchmarkPlan,
    *,
    data: Path,
    out: Path,
    device: torch.device,
    perceptual: Perceptual,
    note: Callable[[str], None] = lambda message: None,
) -> list[RunRecord]:
    """Run what is not done yet of a plan, in order, and return the record of every run.

    A run whose record says `done` is not repeated; one that was interrupted or failed goes on from its last checkpoint.
    A run that fails or cannot be done here does not end the plan. Raises UsageError before the first training where a
    combination is no valid configuration, where `out` holds runs of another configuration or other data, or where
    another benchmark is at work there.
    """
    with locked(out, wait_s=LOCK_WAIT_S, note=note) as lock:
        opened = open_data(data)
        opened.verify()
        runs = [_with_noise(planned, opened) for planned in expand(plan, device=device)]
        before = {planned.name: _earlier(out, planned, opened.digest) for planned in runs}
        write_plan(plan, out)
        bench = Bench(out=out, path=data, data=opened, device=device, perceptual=perceptual, lock=lock, note=note)
        records = []
        for number, planned in enumerate(runs, start=1):
            earlier = before[planned.name]
            if earlier is None or earlier.status != "done":
                note(f"{number}/{len(runs)} {planned.name}")
                earlier = _record(planned, earlier, bench)
                write_record(out, earlier)
                note(f"  {describe(earlier)}")
            records.append(earlier)
        return records


def intended(plan: BenchmarkPlan, *, data: Path, out: Path, device: torch.device) -> list[tuple[str, str]]:
    """What `run_plan` would do with each run, by name, after the same checks: train it, go on with it, or leave it out.

    Raises what `run_plan` raises before its first training, but for a benchmark that is at work.
    """
    opened = open_data(data)
    said = []
    for planned in (_with_noise(planned, opened) for planned in expand(plan, device=device)):
        earlier = _earlier(out, planned, opened.digest)
        if earlier is not None and earlier.status == "done":
            what = "done already"
        elif reason := impossible(planned, device):
            what = f"skipped, {reason}"
        else:
            begun = (run_folder(out, planned.name) / "config.toml").is_file()
            what = "to be gone on with" if begun else "to be trained"
        said.append((planned.name, what))
    return said


def run_folder(out: Path, name: str) -> Path:
    """Where the run of a benchmark lies."""
    return out / "runs" / name


def _log(out: Path, name: str) -> Path:
    return out / "logs" / f"{name}.log"


def describe(record: RunRecord) -> str:
    """How a run ended, in one line."""
    if record.timings is None:
        return f"{record.status}: {record.reason}"
    psnr = record.figures.get("psnr")
    quality = "" if psnr is None else f", PSNR {psnr.mean:.2f} dB"
    return f"{record.timings.seconds:.1f} s of training, {record.timings.images_per_second:.1f} images/s{quality}"


def counts(records: Sequence[RunRecord]) -> str:
    """How many runs ended in which way: `6 done, 2 skipped`."""
    found = Counter(record.status for record in records)
    return ", ".join(f"{found[status]} {status}" for status in ("done", "failed", "skipped") if found[status])


def _with_noise(planned: PlannedRun, data: Cohort | Release) -> PlannedRun:
    """The run with the noise of the data, where it is a release; UsageError where the data do not allow the run."""
    if not holds_clean(data):  # first: who filled an empty set would come to this then
        raise CohortError(f"{data.path} holds no clean images, which a benchmark scores against")
    images = TrainingImages(data, planned.config)
    if not len(images.sets["test"]):
        raise CohortError(f"{data.path} has no images in its test set, which a benchmark scores; import it with one")
    return replace(planned, config=images.config)


def _earlier(out: Path, planned: PlannedRun, cohort_digest: str) -> RunRecord | None:
    """The record of an earlier call. UsageError where it is of another configuration or of other data."""
    record = read_record(out, planned.name)
    if record is None or record.status == "skipped":
        return record
    if record.cohort_digest != cohort_digest:
        raise UsageError(f"{out} holds a benchmark on other data (their digests differ); name another folder")
    if record.config_digest != config_digest(planned.config):
        raise UsageError(
            f"{out} holds a run {planned.name} with other settings than the plan now has; name another folder"
        )
    return record


def _record(planned: PlannedRun, earlier: RunRecord | None, bench: Bench) -> RunRecord:
    """Train and score, or say why not."""
    digest = bench.data.digest
    if reason := impossible(planned, bench.device):
        return begin_record(planned, cohort_digest=digest, status="skipped", reason=reason)
    load = load_per_core()
    attempts = count_start(_log(bench.out, planned.name), earlier=earlier.attempts if earlier is not None else 0)
    try:
        ended = _train(planned, bench)
        if ended.status:
            return begin_record(planned, cohort_digest=digest, status="failed", reason=_why(ended), attempts=attempts)
        return _scored(planned, ended, attempts, bench).model_copy(update={"load": load})
    except VeilrayError as error:
        return begin_record(planned, cohort_digest=digest, status="failed", reason=str(error), attempts=attempts)


def _train(planned: PlannedRun, bench: Bench) -> Ended:
    folder = run_folder(bench.out, planned.name)
    config = bench.out / "configs" / f"{planned.name}.toml"
    write_text(config, dump_config(planned.config))
    words = ["train", str(config), "--data", str(bench.path), "--out", str(folder), "--no-evaluate"]
    if planned.devices > 1:
        words += ["--devices", str(planned.devices)]
    if (folder / "config.toml").is_file():
        words.append("--resume")
    return run_process(words, log=_log(bench.out, planned.name), lock=bench.lock)


def _scored(planned: PlannedRun, ended: Ended, attempts: int, bench: Bench) -> RunRecord:
    run = RunFolder(run_folder(bench.out, planned.name))
    images = TrainingImages(bench.data, planned.config)
    evaluate_run(run, images, perceptual=bench.perceptual, device=bench.device)
    timings = _timings(run.epochs(), ended)
    crop = planned.config.train.crop
    size = (crop, crop) if crop else images.data.sizes[0]
    operations = training_operations(planned.config, size=size)
    environment = run.environment()
    threads = int(environment["threads"]) * int(environment["world_size"])
    peak = peak_of(planned, bench.device, threads=threads, folder=bench.out)
    return begin_record(
        planned,
        cohort_digest=bench.data.digest,
        status="done",
        attempts=attempts,
        environment=environment,
        figures=read_summary(run.path).methods[MODEL],
        timings=timings,
        arithmetic=Arithmetic(
            operations_per_image=operations,
            peak_per_second=peak,
            share_of_peak=operations * timings.images_per_second / peak,
        ),
    )


def _timings(epochs: Sequence[EpochRecord], ended: Ended) -> Timings:
    if not epochs:
        raise VeilrayError("the training ended without an epoch in metrics.jsonl; see its log")
    parts: Counter[str] = Counter()
    for epoch in epochs:
        parts.update(epoch.parts)
    memory = max(epoch.peak_memory_bytes for epoch in epochs)
    return Timings(
        seconds=epochs[-1].seconds,
        epochs=epochs[-1].epoch,
        process_seconds=ended.seconds,
        images_per_second=median(epoch.images_per_second for epoch in epochs[1:] or epochs),
        parts=dict(parts),
        peak_memory_bytes=memory or None,
    )


def _why(ended: Ended) -> str:
    if ended.message:
        return ended.message
    if ended.status < 0:
        return f"its process was ended by signal {-ended.status}; it goes on from its last checkpoint when run again"
    return f"its process ended with status {ended.status} and no message; see its log"
