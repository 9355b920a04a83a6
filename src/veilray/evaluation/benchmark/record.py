"""Records of a benchmark: one JSON file a run, written when it has ended in whichever way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from veilray.errors import RunError
from veilray.evaluation.benchmark.plan import PlannedRun
from veilray.files import read_json, write_json
from veilray.metrics.interval import Interval
from veilray.training.config import RunConfig

SCHEMA_VERSION = 1


class Timings(BaseModel):
    """What a training took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    """Training from its first step to its last, validation and checkpoints included, interruptions left out."""
    epochs: int
    process_seconds: float
    """The whole process, from its start to its end: imports, start-up and training; of the last attempt alone, so that
    it may be shorter than `seconds` where there were more."""
    images_per_second: float
    """Training images a second, validation and checkpoints left out: median over the epochs after the first, which
    also warms up and compiles; of the first where it is the only one."""
    parts: dict[str, float]
    """Seconds by part (data, forward, backward, ...), summed over the epochs; empty where the run did not say."""
    peak_memory_bytes: int | None
    """Largest memory of a process of the training: allocated on the GPU, resident on a CPU; None where not recorded."""


class Arithmetic(BaseModel):
    """How much of the device's arithmetic a training used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operations_per_image: float
    """Floating-point operations of forward and backward pass, a multiply-add as two."""
    peak_per_second: float
    """Measured operations a second of a matrix product on all the devices that the run used."""
    share_of_peak: float
    """Operations a second of the training over those of the peak."""


class RunRecord(BaseModel):
    """`records/NAME.json`: one run of a benchmark."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    name: str
    levels: dict[str, str]
    seed: int
    devices: int
    status: Literal["done", "failed", "skipped"]
    reason: str = ""
    """Why it failed or was skipped."""
    attempts: int = 0
    """How often the training was started, also where it was killed; more than one where it was resumed."""
    config: dict[str, Any]
    """The resolved configuration."""
    config_digest: str
    cohort_digest: str
    load: float | None = None
    """Processes that wanted to run, for each core, over the minute before the training began: the run before it alone
    makes about 1. None where the system does not count them, or nothing was trained."""
    environment: dict[str, Any] = {}
    """The run's `environment.json`: hardware, versions, counts of images and patients."""
    split: str = "test"
    """The set that the figures are of."""
    figures: dict[str, Interval | None] = {}
    """metric -> mean over the images with its interval, clustered by patient; None where not computed."""
    timings: Timings | None = None
    arithmetic: Arithmetic | None = None
    recorded: str

    @property
    def combination(self) -> tuple[tuple[str, str], ...]:
        """What it shares with runs that differ in their seed only."""
        return tuple(self.levels.items())


def begin_record(planned: PlannedRun, *, cohort_digest: str, **fields: Any) -> RunRecord:
    """A record of a planned run, now."""
    return RunRecord(
        name=planned.name,
        levels=planned.levels,
        seed=planned.seed,
        devices=planned.devices,
        config=planned.config.model_dump(mode="json"),
        config_digest=config_digest(planned.config),
        cohort_digest=cohort_digest,
        recorded=datetime.now(UTC).isoformat(timespec="seconds"),
        **fields,
    )


def config_digest(config: RunConfig) -> str:
    """SHA-256 of a configuration, by which a record tells that it is of another one."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def write_record(folder: Path, record: RunRecord) -> None:
    """Write `records/NAME.json` in a benchmark's folder, whole or not at all."""
    write_json(record_path(folder, record.name), record.model_dump(mode="json"))


def read_record(folder: Path, name: str) -> RunRecord | None:
    """The record of a run; None where there is none, RunError where it is damaged."""
    path = record_path(folder, name)
    if not path.is_file():
        return None
    try:
        return RunRecord.model_validate(read_json(path))
    except ValidationError as error:
        raise RunError(
            f"{path} does not fit its schema ({error.error_count()} faults); remove it to run it again"
        ) from None


def record_path(folder: Path, name: str) -> Path:
    """Where the record of a run lies."""
    return folder / "records" / f"{name}.json"


def done(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Those that have figures."""
    return [record for record in records if record.status == "done"]
