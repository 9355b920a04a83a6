"""What one rank of a training computes, for the tests that hold several ranks to one.

`python -c "from tests.distributed.exact import main; main()" COHORT OUT` does every case, under torchrun's environment
or alone; the lead writes `OUT/CASE.safetensors` (gradients of each step, in order), `OUT/CASE.json` and
`OUT/exchanges.json` (how many buckets of gradients crossed ranks, by the parts that batches were cut into).
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from tests.training.small import Recorder, small_config
from torch import Tensor

from veilray.models.build import build_model
from veilray.parallel.compression import Bf16Average
from veilray.parallel.group import Group
from veilray.parallel.joining import joined
from veilray.training.batch import TrainingParts
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.launch import resolved
from veilray.training.loop import train
from veilray.training.objectives.supervised import discriminator_of
from veilray.training.run import RunFolder
from veilray.training.setup import choose_setup
from veilray.training.state import TrainingState
from veilray.training.step import Signals, Stepper
from veilray.training.timing import PartClock
from veilray.training.validation import validate

CPU = torch.device("cpu")
BATCH_SIZE = 6
STEPS = 20

GRADIENTS: dict[str, dict[str, dict[str, Any]]] = {
    "group": {"model": {"norm": "group"}},
    "batch": {"model": {"norm": "batch"}, "launch": {"bucket_mb": 0.01}},
    "accumulated": {"model": {"norm": "batch"}, "train": {"accumulate": 2, "batch_size": 12}},
    "unetpp": {"model": {"name": "unetpp", "norm": "batch"}, "train": {"loss": "mse"}},
    "adversarial": {"model": {"norm": "group"}, "train": {"loss": "adversarial", "discriminator_width": 4}},
    "censored_sure": {
        "model": {"norm": "group"},
        "train": {"objective": "censored_sure", "probe_every": 2, "accumulate": 2, "batch_size": 12},
    },
    "neighbor2neighbor": {"model": {"norm": "group"}, "train": {"objective": "neighbor2neighbor"}},
    "heads": {"model": {"name": "unetpp", "norm": "group", "deep_supervision": True}},
}
"""Cases of gradients; each is run in float64, and the first two in float32 too."""

TRAININGS: dict[str, dict[str, dict[str, Any]]] = {
    "group": {"model": {"norm": "group"}},
    "batch": {"model": {"norm": "batch"}, "train": {"flips": True, "clip_norm": 0.1}},
}
"""Cases of whole trainings, in float32."""


def main() -> None:
    """Do every case as a process of its own."""
    torch.set_num_threads(1)
    compute(Path(sys.argv[1]), Path(sys.argv[2]))


def compute(cohort: Path, out: Path) -> None:
    """Do every case."""
    with joined(CPU, timeout=60) as group:
        for case, changes in GRADIENTS.items():
            for dtype in (torch.float64, torch.float32) if case in ("group", "batch") else (torch.float64,):
                gradients = _gradients(_config(changes), cohort, group, dtype)
                if group.is_lead:
                    save_file(gradients, out / f"{case}-{str(dtype).removeprefix('torch.')}.safetensors")
        for case, changes in TRAININGS.items():
            report = _training(_config(changes, learning_rate=1e-3), cohort, out / case, group)
            reports = group.gather(report)
            assert reports == [reports[0]] * group.world_size, "ranks disagree"
            if group.is_lead:
                (out / f"{case}.json").write_text(json.dumps(report), encoding="utf-8")
        exchanges = {parts: _exchanges(parts, cohort, group) for parts in (1, 2)}
        if group.is_lead:
            (out / "exchanges.json").write_text(json.dumps(exchanges), encoding="utf-8")


def _config(changes: dict[str, dict[str, Any]], **train: Any) -> RunConfig:
    sections = {name: dict(keys) for name, keys in changes.items()}
    sections["train"] = {"batch_size": BATCH_SIZE, "epochs": STEPS, **train, **sections.get("train", {})}
    # Of the layouts the one whose rounding grows least from step to step, whatever `auto` takes on this processor.
    sections["launch"] = {"layout": "contiguous", **sections.get("launch", {})}
    return resolved(small_config(**sections), CPU)


def _gradients(config: RunConfig, cohort: Path, group: Group, dtype: torch.dtype) -> dict[str, Tensor]:
    """The gradient of each tensor in each step of an epoch, the last of which is uneven."""
    images = TrainingImages.open(cohort, config)
    setup = choose_setup(config, group, CPU)
    torch.manual_seed(config.seed)
    model = setup.prepare(build_model(config.model).to(dtype))
    discriminator = discriminator_of(config)
    if discriminator is not None:
        discriminator.to(dtype)
    state = TrainingState(model, config.train, device=CPU, scale_loss=False, discriminator=discriminator)
    stepper = Stepper(state, config, setup, PartClock(CPU))
    kept = {}
    for step in range(images.steps_per_epoch()):
        parts = images.training_parts(0, step, CPU, group)
        wide = [replace(p, noisy=p.noisy.to(dtype), originals=p.clean.to(dtype)) for p in parts.parts]
        stepper.take(TrainingParts(images=parts.images, parts=wide), rate=1e-3, signals=Signals())
        for network in (model, discriminator):
            for name, parameter in network.named_parameters() if network is not None else ():
                if parameter.grad is not None:
                    kept[f"{step}/{name}"] = parameter.grad.clone()
    return kept


def _exchanges(parts: int, cohort: Path, group: Group) -> int:
    """Buckets of gradients that cross ranks in the steps of an epoch whose batches are cut into parts."""
    train = {"accumulate": parts, "batch_size": 2 * BATCH_SIZE}
    launch = {"compression": "bf16"} if group.joined else {}
    config = _config({"model": {"norm": "group"}, "train": train, "launch": launch})
    crossed = []
    add = Bf16Average.add

    def counted(self: Bf16Average, values: Tensor, **options: Any) -> torch.futures.Future[Tensor]:
        crossed.append(len(values))
        return add(self, values, **options)

    with mock.patch.object(Bf16Average, "add", counted):
        _gradients(config, cohort, group, torch.float32)
    return len(crossed)


def _training(config: RunConfig, cohort: Path, out: Path, group: Group) -> dict[str, Any]:
    """The losses of the first steps, the best epoch, and a validation of weights that no rounding has led astray."""
    images = TrainingImages.open(cohort, config)
    setup, recorder = choose_setup(config, group, CPU), Recorder()
    run = RunFolder.create(out, config) if group.is_lead else RunFolder(out)
    epochs = -(-STEPS // images.steps_per_epoch())
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
    outcome = train(config, images, run, device=CPU, watcher=recorder, setup=setup)
    torch.manual_seed(config.seed)
    return {
        "losses": recorder.losses[:STEPS],
        "validation": list(validate(build_model(config.model), images, config, CPU, group)),
        "best": [outcome.best_epoch, outcome.best_loss],
    }
