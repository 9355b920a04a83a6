"""The run folder: configuration, environment, metrics and checkpoints of one training."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from veilray.errors import RunError, UsageError
from veilray.files import read_json, write_json, write_text
from veilray.parallel.devices import describe_device
from veilray.parallel.workers import available_cores
from veilray.training.config import SCHEMA_VERSION, RunConfig, dump_config, load_config
from veilray.training.packages import PACKAGES


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of `metrics.jsonl`: how an epoch went."""

    event: str = "epoch"
    epoch: int
    """Counted from 1."""
    step: int
    """Optimiser steps done."""
    train_loss: float
    """Mean over the images since the record before, each at the weights of its own step."""
    validation_loss: float
    """Mean over all validation images, at the averaged weights; of a training without clean images the
    criterion of its objective, in units of the squared error, which may be negative."""
    validation_psnr: float | None
    """Mean over all validation images in dB, output clamped; None where there are no clean images to compare with."""
    learning_rate: float
    images_per_second: float
    """Training images a second, validation and checkpoints left out."""
    seconds: float
    """Since the start of the training, interruptions left out."""
    parts: dict[str, float] = field(default_factory=dict)
    """Where the lead's seconds went since the record before; see `training.timing`."""
    peak_memory_bytes: int = 0
    """Most memory in use at once so far, on the rank that used most: allocated on the GPU, or of a process on the CPU;
    0 in records of versions that did not measure it."""


class RunFolder:
    """A folder that holds one training and all that follows from it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def best_weights(self) -> Path:
        """Weights with the lowest validation loss."""
        return self.checkpoints / "best.safetensors"

    def check_best_weights(self) -> None:
        """RunError where there are no best weights."""
        if self.best_weights.is_file():
            return
        name = self.best_weights.relative_to(self.path)
        done = len(self.epochs())
        if not done:
            raise RunError(f"{self.path} has no {name} yet: its first validation is not done")
        raise RunError(f"{self.path} has lost its {name}: restore the file, or train again in a new folder")

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> RunFolder:
        """Make a new run folder. UsageError where the folder already holds something."""
        cls.check_new(path)
        run = cls(path)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(run.path / "config.toml", dump_config(config))
        return run

    @staticmethod
    def check_new(path: str | Path) -> None:
        """Raise UsageError where a folder already holds something."""
        folder = Path(path)
        if (folder / "config.toml").exists():
            raise UsageError(f"{folder} already holds a run; add --resume to go on with it, or name another folder")
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty; name a new folder for the run")

    @classmethod
    def resume(cls, path: str | Path, config: RunConfig) -> RunFolder:
        """Open a run folder to go on with it. UsageError where the configuration is not the one it was begun with."""
        run = cls(path)
        before = run.config()
        changed = [
            name
            for name in RunConfig.model_fields
            if name != "launch" and getattr(before, name) != getattr(config, name)
        ]
        if changed:
            raise UsageError(
                f"{run.path} was begun with another configuration ([{'], ['.join(changed)}] differ); "
                f"resume with {run.path / 'config.toml'}, or name another folder"
            )
        return run

    def config(self) -> RunConfig:
        """The configuration the run was begun with. RunError where there is none."""
        path = self.path / "config.toml"
        if not path.is_file():
            raise RunError(f"{self.path} holds no run: config.toml is missing")
        return load_config(path)

    def environment(self) -> dict[str, Any]:
        """Data of the run, and hardware, versions and set-up of its last life; `lives` has those of each."""
        environment: dict[str, Any] = read_json(self.path / "environment.json")
        return environment

    def epochs(self) -> list[EpochRecord]:
        """The epochs so far, from `metrics.jsonl`; a last line cut short by a crash is passed over.

        RunError for any other line that is no record of an epoch.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(EpochRecord(**json.loads(line)))
            except (json.JSONDecodeError, TypeError) as error:
                if number == len(lines) and isinstance(error, json.JSONDecodeError):
                    break
                raise RunError(f"{path}, line {number}, is no record of an epoch; restore the file") from None
        return records

    def append(self, record: EpochRecord) -> None:
        """Add an epoch to `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(record)) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the epochs after a step: those that a crash has taken from the checkpoints."""
        kept = [record for record in self.epochs() if record.step <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(asdict(record)) + "\n" for record in kept))

    def write_environment(self, facts: Mapping[str, Any], *, device: torch.device) -> None:
        """Write `environment.json`: the given facts of the data and the model, with hardware and versions."""
        environment = {"schema_version": SCHEMA_VERSION, "started": _now(), **_here(device), **facts, "lives": []}
        write_json(self.path / "environment.json", environment)

    def begin_life(self, life: Mapping[str, Any], *, step: int, device: torch.device) -> None:
        """Add to `lives` in `environment.json` how the run is trained from here on, after `step` steps.

        What the file says outside `lives` is then of this life, apart from `started`, which is the first one's.
        """
        environment, here = self.environment(), _here(device)
        own = {name: value for name, value in life.items() if name != "launch"}  # config.toml has the first one's
        lives = [*environment.get("lives", []), {"from_step": step, "started": _now(), **here, **life}]
        write_json(self.path / "environment.json", {**environment, **here, **own, "lives": lives})


def _here(device: torch.device) -> dict[str, Any]:
    """Versions and hardware of this process."""
    return {
        **PACKAGES,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "device": device.type,
        "device_name": describe_device(device),
        "threads": torch.get_num_threads(),
        "cores": available_cores(),
        "git_commit": _git_commit(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_commit() -> str | None:
    """The commit of the source tree this package runs from, `+changes` where it differs; None outside a checkout."""
    source = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=source,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
