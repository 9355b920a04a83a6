"""Trainings on two ranks in which rank 1 stumbles, for test_training.py: what each rank saw of it, as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save
from tests.training.small import Recorder, small_config
from torch import Tensor

from veilray.errors import ToldElsewhere, TrainingError
from veilray.parallel.group import Group
from veilray.parallel.joining import joined
from veilray.training import loop
from veilray.training.batch import Batch
from veilray.training.data import TrainingImages
from veilray.training.objectives import SupervisedObjective
from veilray.training.run import RunFolder
from veilray.training.setup import choose_setup
from veilray.training.state import Snapshot, TrainingState

CPU = torch.device("cpu")
Spoil = Callable[[Tensor], Tensor]


def main() -> None:
    """Do every case, and print what this rank saw."""
    cohort, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    with joined(CPU, timeout=60) as group:
        seen = {
            "overflow once": _train(cohort, out / "once", group, "fp16", spoil=_overflows, steps={3, 4}),
            "overflow always": _train(cohort, out / "always", group, "fp16", spoil=_overflows, steps=set(range(99))),
            "not finite": _train(cohort, out / "nan", group, "fp32", spoil=lambda x: x * torch.nan, steps={5}),
            "interrupted": _train(cohort, out / "stopped", group, "fp32", interrupt_at=4),
            "interrupted validation": _train(cohort, out / "given up", group, "fp32", interrupt_validation=True),
            "no disk": _train(cohort, out / "full", group, "fp32", full_disk=True),
        }
        print(json.dumps(seen))


class _Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


def _overflows(losses: Tensor) -> Tensor:
    return _Overflow.apply(losses)


def _train(
    cohort: Path,
    out: Path,
    group: Group,
    precision: str,
    *,
    spoil: Spoil | None = None,
    steps: frozenset[int] | set[int] = frozenset(),
    interrupt_at: int = 0,
    interrupt_validation: bool = False,
    full_disk: bool = False,
) -> dict[str, Any]:
    """Train, with the losses of rank 1 spoilt in some steps, or rank 1 interrupted, or no room for checkpoints."""
    config = small_config(
        launch={"precision": precision}, train={"epochs": 12, "batch_size": 6}, model={"norm": "group"}
    )
    images = TrainingImages.open(cohort, config)
    run = RunFolder.create(out, config) if group.is_lead else RunFolder(out)
    states: list[TrainingState] = []
    original, start = SupervisedObjective.forward, loop._start
    held_out_batch = TrainingImages.held_out_batch

    def forward(self: SupervisedObjective, noisy: Tensor, clean: Tensor) -> Tensor:
        losses = original(self, noisy, clean)
        spoilt = spoil is not None and group.rank == 1 and states[0].counters.step + 1 in steps
        return spoil(losses) if spoil is not None and spoilt else losses

    def keep(*arguments: Any) -> TrainingState:
        states.append(start(*arguments))
        return states[0]

    def act(step: int) -> None:
        if step == interrupt_at and group.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def held_out(self: TrainingImages, *arguments: Any) -> Batch:
        if interrupt_validation and group.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return held_out_batch(self, *arguments)

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    recorder, ended = Recorder(act), ""
    with (
        mock.patch.object(SupervisedObjective, "forward", forward),
        mock.patch.object(loop, "_start", keep),
        mock.patch.object(TrainingImages, "held_out_batch", held_out),
        mock.patch.object(Snapshot, "save", fail if full_disk else Snapshot.save),
    ):
        try:
            setup = choose_setup(config, group, CPU)
            outcome = loop.train(config, images, run, device=CPU, watcher=recorder, setup=setup)
            ended = "interrupted" if outcome.interrupted else "done"
        except (TrainingError, ToldElsewhere, OSError) as error:
            ended = f"{type(error).__name__}: {error}"
    weights = save({name: value.contiguous() for name, value in states[0].model.state_dict().items()})
    return {
        "ended": ended,
        "steps": states[0].counters.step,
        "epochs": len(recorder.records),
        "steps an epoch": images.steps_per_epoch(),
        "scale": states[0].scaler.get_scale(),
        "weights": hashlib.sha256(weights).hexdigest(),
    }
