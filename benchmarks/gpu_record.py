"""The record of gpu.py: what is to be measured, on what, and a JSON file that holds at any moment what was measured."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import veilray
from veilray.files import read_json, write_json
from veilray.parallel.devices import describe_device

MODELS = ("unet", "unetpp")


@dataclass(frozen=True, kw_only=True)
class Scope:
    """How large the measurements are."""

    width: int = 64
    """Channels of the first level, as in the paper."""
    size: int = 256
    """Pixels a side, as in the paper."""
    batch: int = 32
    """Images a step in the throughput section: the released distributed script's, a rank."""
    batch_of_a_rank: int = 8
    """Images a step and rank in the section of two ranks."""
    seconds: float = 1.5
    """Of timed steps, for each way to train."""
    chunk: int = 5
    """Steps between two looks at the clock; as many again before the first."""
    paper_images: int = 14_999
    """Of which split.rule = 'paper' makes 7,499 for training and 4,949 for validation."""
    phantoms: int = 240
    """Phantom patients for the training run where no cohort is given."""
    most_epochs: int = 1000
    """Of the training run, whatever time is left."""
    compile: bool = True
    """Whether ways that go through torch.compile are measured."""


QUICK = Scope(
    width=4,
    size=32,
    batch=2,
    seconds=0.0,
    chunk=1,
    batch_of_a_rank=2,
    paper_images=24,
    phantoms=16,
    most_epochs=3,
    compile=False,
)


class Record:
    """A JSON file, read and written as a whole for each figure, so that a process may end at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, value: Any, *keys: str) -> None:
        """Put a value at a place in the record, such as put(12.5, "throughput", "unet", "seconds")."""
        record = self.read()
        place = record
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
        write_json(self.path, record)

    def get(self, *keys: str) -> Any:
        """The value at a place in the record; None where there is none."""
        place: Any = self.read()
        for key in keys:
            place = place.get(key) if isinstance(place, dict) else None
        return place

    def read(self) -> dict[str, Any]:
        """The whole record."""
        return read_json(self.path) if self.path.exists() else {}


def hardware(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    facts: dict[str, Any] = {
        "device": describe_device(device),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "veilray": veilray.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "gpus": torch.cuda.device_count(),
        }
    return facts


def reason(error: BaseException) -> str:
    """An error as one line for the record."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
