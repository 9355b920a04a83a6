"""Benchmarks that the tests share: a tiny plan, and trainings run in this process for speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from tests.command_line import veilray

from veilray.evaluation.benchmark import hardware as benchmark_hardware
from veilray.evaluation.benchmark import run as benchmark
from veilray.evaluation.benchmark.plan import BenchmarkPlan, load_plan
from veilray.evaluation.benchmark.process import Ended
from veilray.evaluation.benchmark.record import RunRecord
from veilray.evaluation.scoring import Perceptual

PEAK = 5e10
TINY = """
name = "tiny"
[settings.model]
width = 4
depth = 3
[settings.train]
epochs = 1
batch_size = 8
[settings.launch]
device = "cpu"
precision = "fp32"
"""


def tiny_plan(folder: Path, factors: str = "", *, seeds: Sequence[int] = (1,)) -> BenchmarkPlan:
    """A plan that trains in a second a run; `factors` is TOML."""
    path = folder / "tiny.toml"
    path.write_text(f"seeds = {list(seeds)}\n{TINY}\n{factors}", encoding="utf-8")
    return load_plan(path)


def run_here(plan: BenchmarkPlan, data: Path, out: Path, **options: Any) -> list[RunRecord]:
    """Run a plan without LPIPS."""
    device = torch.device("cpu")
    return benchmark.run_plan(
        plan, data=data, out=out, device=device, perceptual=Perceptual(network=None, note="no backbone"), **options
    )


class InProcess:
    """Takes the place of `run_process`: the same command in this process; may be told to fail. The peak is PEAK."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        self.before: Callable[[list[str]], Ended | None] = lambda words: None
        monkeypatch.setattr(benchmark, "run_process", self)
        monkeypatch.setattr(benchmark_hardware, "measured_peak", lambda device, config: PEAK)

    def __call__(self, arguments: Sequence[str], *, log: Path, lock: IO[bytes]) -> Ended:
        words = list(arguments)
        self.commands.append(words)
        ended = self.before(words)
        if ended is not None:
            return ended
        finished = veilray(*words)
        return Ended(status=finished.status, seconds=1.0, message=finished.err.removeprefix("veilray: ").strip())
