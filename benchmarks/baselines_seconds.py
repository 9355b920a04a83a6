"""Seconds of one core that an image takes in each method, measured apart from the scoring, on a quiet machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from veilray.evaluation.baselines.cases import Case, load_case, tuning_rows
from veilray.evaluation.baselines.methods import METHODS, restore, warm_up
from veilray.evaluation.comparison import Comparison, Level
from veilray.evaluation.levels import at_noise
from veilray.evaluation.results import BASELINES
from veilray.inference.denoiser import Denoiser
from veilray.training.data import TrainingImages

FILE = "seconds.json"
ROUNDS = 5
"""Of a network, which takes milliseconds; a classical method goes over each image once."""


def measure(comparison: Comparison, data: Path, *, images: int) -> dict[str, Any]:
    """Median seconds an image by level and label, in this process with one thread, over validation images."""
    torch.set_num_threads(1)
    return {
        "images": images,
        "levels": {level.noise.std_text: _of_level(level, data, images) for level in comparison.levels},
    }


def overlaid(record: dict[str, Any], out: Path) -> dict[str, Any]:
    """A record with the seconds of `FILE` in place of those of the scoring, where they are there."""
    if not (out / FILE).is_file():
        return {**record, "seconds_of": "the scoring"}
    found = json.loads((out / FILE).read_text(encoding="utf-8"))
    for level in record["levels"]:
        for method in level["methods"]:
            method["core_seconds"] = found["levels"][level["noise"]].get(method["label"])
    return {**record, "seconds_of": f"{found['images']} validation images, nothing else running"}


def _of_level(level: Level, data: Path, count: int) -> dict[str, float]:
    run = level.models[0].runs[0]
    images = TrainingImages.open(data, at_noise(run.config, level.noise))
    cases = [load_case(images, int(row)) for row in tuning_rows(images, count)]
    tuned = json.loads((run.folder / BASELINES).read_text(encoding="utf-8"))["methods"]
    seconds: dict[str, float] = {}
    taken: dict[str, float] = {}
    for name, one in tuned.items():
        key = json.dumps([one["smoother"], one["strength"]], sort_keys=True)
        if key not in taken:  # both forms of one smoothing take as long
            warm_up(one["smoother"])
            taken[key] = _median([_classical(name, one["strength"], case) for case in cases])
        seconds[METHODS[name].title] = taken[key]
    for arm in level.models:
        denoiser = Denoiser.load(arm.runs[0].source, device="cpu")
        work = [_network(denoiser, case) for case in cases]
        _median(work)
        seconds[arm.label] = _median(work * ROUNDS)
    return seconds


def _classical(name: str, strength: dict[str, Any], case: Case) -> Callable[[], object]:
    return lambda: restore(case.noisy, METHODS[name], noise=case.noise, strength=strength)


def _network(denoiser: Denoiser, case: Case) -> Callable[[], object]:
    return lambda: denoiser(case.noisy, mean=case.noise.mean, std=case.noise.std)


def _median(work: Sequence[Callable[[], object]]) -> float:
    seconds = []
    for one in work:
        started = time.process_time()
        one()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)
