"""What the benchmarks share: two sides measured alternately in processes of their own, tables, and records."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import veilray
from veilray.parallel.devices import describe_device

RESULTS = Path(__file__).parent / "results"


def alternate(
    script: str, sides: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], *, rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Run each side `rounds` times, taking turns, so that a slow minute of the machine hits all of them.

    A side is (arguments, environment) of a Python process that runs `script` and prints one JSON object last.
    """
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, (arguments, environment) in sides.items():
            print(f"round {number + 1}/{rounds}: {name}", file=sys.stderr, flush=True)
            done = subprocess.run(
                [sys.executable, script, *arguments],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            measured[name].append(json.loads(done.stdout.splitlines()[-1]))
    return measured


def medians(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over the rounds."""
    return {key: statistics.median(one[key] for one in measured) for key in measured[0]}


def hardware() -> dict[str, Any]:
    """What a figure depends on. All but gpu.py, which says so itself, measure the processor."""
    return {
        "device": describe_device(torch.device("cpu")),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "veilray": veilray.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def save(name: str, record: Mapping[str, Any]) -> None:
    """Write `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"hardware": hardware(), **record}, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path}")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as a plain aligned table."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
