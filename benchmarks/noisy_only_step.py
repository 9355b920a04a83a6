"""What a training step costs by each objective that sees no clean image, as a multiple of a supervised step.

    python benchmarks/noisy_only_step.py [--rounds 7] [--save]

The step of `veilray train`, forward, backward and update, on a batch that is in memory already, with a NAFNet of width
32 folded by 4. The objectives take turns, so that a slow moment hits all; the figure is the median over the rounds
of the ratio to the supervised step of the same round. One thread; processor seconds, which other work on the machine
does not add to.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from common import save, table
from veilray.models.build import build_model
from veilray.training.batch import Batch, TrainingParts
from veilray.training.config import RunConfig
from veilray.training.draws import Drawn, draw
from veilray.training.setup import Setup
from veilray.training.state import TrainingState
from veilray.training.step import Signals, Stepper
from veilray.training.timing import PartClock

CPU = torch.device("cpu")
BATCH, CROP = 8, 128
NETWORK = {"name": "nafnet", "width": 32, "depth": 3, "fold": 4, "residual": True}
CLAMPED = ("supervised", "censored_sure", "censored_r2r", "blind_spot", "neighbor2neighbor")
OPEN = ("sure", "r2r")
PROBES = (1, 2, 4)
"""Values of train.probe_every, of the objectives that have it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write the record in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = _measure(options.rounds)
    rows = [[name, f"{1000 * one['seconds']:.0f}", f"{one['ratio']:.2f}"] for name, one in found.items()]
    print(table(["objective", "ms a step", "of a supervised step"], rows))
    if options.save:
        save("noisy_only_step", {"batch": BATCH, "crop": CROP, "threads": 1, "rounds": options.rounds, "steps": found})


def _measure(rounds: int) -> dict[str, dict[str, float]]:
    steps = {name: _step(*settings) for name, settings in _cases().items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, (stepper, parts) in steps.items():
            began = time.process_time()
            stepper.take(parts, rate=1e-4, signals=Signals())
            if number:  # the first warms up
                seconds[name].append(time.process_time() - began)
    base = seconds["supervised"]
    return {
        name: {
            "seconds": statistics.median(own),
            "ratio": statistics.median(one / other for one, other in zip(own, base, strict=True)),
        }
        for name, own in seconds.items()
    }


def _cases() -> dict[str, tuple[str, bool, int]]:
    """Objective, clamp and probe_every, by name."""
    cases = {}
    for objective in (*CLAMPED, *OPEN):
        for every in PROBES if objective.endswith("sure") else (2,):
            name = f"{objective}, every {every}" if objective.endswith("sure") else objective
            cases[name] = (objective, objective in CLAMPED, every)
    return cases


def _step(objective: str, clip: bool, every: int) -> tuple[Stepper, TrainingParts]:
    config = RunConfig.model_validate(
        {
            "noise": {"clip": clip},
            "model": NETWORK,
            "train": {"objective": objective, "batch_size": BATCH, "probe_every": every, "loss": "mse"},
            "launch": {"device": "cpu", "precision": "fp32", "layout": "contiguous"},
        }
    )
    torch.manual_seed(0)
    state = TrainingState(build_model(config.model), config.train, device=CPU, scale_loss=False)
    clean = torch.rand((BATCH, 1, CROP, CROP))
    noisy = clean + 0.1 + 0.2 * torch.randn_like(clean)
    drawn: Drawn | None = None
    if objective != "supervised":
        weights = np.zeros(BATCH, dtype=np.float32)
        weights[::every] = every
        names = [str(number) for number in range(BATCH)]
        drawn = draw(config.train.objective, names, (CROP, CROP), weights=weights)
    known = torch.tensor([[0.1, 0.2]]).expand(BATCH, -1)
    noisy = noisy.clamp(0, 1) if clip else noisy
    part = Batch(rows=np.arange(BATCH), noisy=noisy, known=known, originals=clean, drawn=drawn)
    return Stepper(state, config, Setup(), PartClock(CPU)), TrainingParts(images=BATCH, parts=[part])


if __name__ == "__main__":
    main()
