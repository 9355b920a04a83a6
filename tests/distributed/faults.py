"""Trainings of two ranks under torchrun that meet a fault, and what must be left of them."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tests.command_line import Finished
from tests.distributed.harness import finish, start_torchrun

from veilray.models.tensors import read_tensors
from veilray.training.run import RunFolder
from veilray.training.state import FORMAT, SCHEMA_VERSION, checkpoints

EPOCHS, BATCH = 5, 8
TIMEOUT = 60.0
"""Seconds that a rank waits for the others; ranks may start far apart on a machine that is busy."""
HANG_TIMEOUT = 40.0
"""The same where a rank hangs, which the test must wait for; counted from when the ranks have met."""
LIMIT = 300.0
"""Seconds after which a training has not ended at all: this only keeps a failing test from hanging."""
STEPS = 20
"""Of the whole training: five epochs of 28 images."""
BEFORE_THE_END = 18
"""Step before which a training waits for what must come while it trains, however fast the machine is."""
LATEST = 13
"""Step at which the last fault begins, at the latest: a rank that is killed at a random moment may get some further."""
KILLS = ("killed", "killed inside an all-reduce", "killed inside a checkpoint", "hung")
"""Faults after which the launcher's restart goes on."""
LOST = "veilray: another rank has ended or does not answer"
TRACEBACK_CHARACTERS = 2000
"""Of each traceback, at most, that go on record."""
PROGRAM, HELD = (Path(__file__).with_name(name) for name in ("faulty.py", "held.py"))


@dataclass(frozen=True)
class Fault:
    """What befalls which rank, and when."""

    kind: str
    rank: int
    step: int
    """Counted from 1."""
    moment: float
    """Where in the step or in the write, 0 to 1."""

    @classmethod
    def drawn(cls, kind: str, seed: int, *, step: int | None = None) -> Fault:
        """A fault of a kind at a random place, or at a step; checkpoints and disks are the lead's."""
        generator = random.Random(f"{kind}/{seed}")
        lead = kind in ("killed inside a checkpoint", "full disk")
        rank, moment = 0 if lead else generator.randrange(2), generator.random()
        return cls(kind, rank, generator.randint(1, LATEST) if step is None else step, moment)


def deaths(seed: int) -> list[Fault]:
    """One fault of each of `KILLS`, in a random order, at random steps one after another: one for each life."""
    generator = random.Random(f"deaths/{seed}")
    steps = sorted(generator.sample(range(1, LATEST + 1), len(KILLS)))
    kinds = generator.sample(KILLS, len(KILLS))
    return [Fault.drawn(kind, seed, step=step) for kind, step in zip(kinds, steps, strict=True)]


def words(cohort: Path, out: Path, *, timeout: float = TIMEOUT) -> list[str]:
    """A training of a second, with a checkpoint at every step."""
    settings = {
        "model.width": 4,
        "model.depth": 3,
        "train.epochs": EPOCHS,
        "train.batch_size": BATCH,
        "launch.device": "cpu",
        "launch.precision": "fp32",
        "launch.timeout_seconds": timeout,
        "launch.checkpoint_minutes": 1e-9,
    }
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return ["train", "default", "--data", str(cohort), "--out", str(out), "--no-evaluate", *options]


def train(cohort: Path, out: Path, faults: Sequence[Fault] = (), *, resume: bool = False) -> Finished:
    """Run a training to its end, or to the end that faults make of it; the launcher starts it again after each."""
    timeout = HANG_TIMEOUT if any(fault.kind == "hung" for fault in faults) else TIMEOUT
    process = start_torchrun(
        *words(cohort, out, timeout=timeout),
        *(["--resume"] if resume else []),
        options=[f"--max-restarts={max(1, len(faults))}"],
        environment={"FAULTS": json.dumps([asdict(fault) for fault in faults])},
        program=[str(PROGRAM)],
    )
    return finish([process], timeout=LIMIT)[0]


def interrupted(cohort: Path, out: Path, step: int) -> Finished:
    """Press Ctrl-C, which every process of the terminal gets, once the checkpoint of a step is there."""
    process = start_torchrun(
        *words(cohort, out),
        options=["--max-restarts=1"],
        environment={"HELD": "2", "HELD_BEFORE": str(BEFORE_THE_END)},
        program=[str(HELD)],
    )
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        if any(_step(path) >= step for path in checkpoints(RunFolder(out).checkpoints)):
            os.killpg(process.pid, signal.SIGINT)
            break
        time.sleep(0.005)
    return finish([process], timeout=LIMIT)[0]


def differences(out: Path, undisturbed: Path) -> list[str]:
    """What differs between the last checkpoints and best weights of two runs; nothing, where they are bit for bit one.

    Times are left out.
    """
    found = []
    names = [path.name for path in checkpoints(RunFolder(undisturbed).checkpoints)]
    if names != [path.name for path in checkpoints(RunFolder(out).checkpoints)]:
        return ["the checkpoints are of other steps"]
    for name in (names[-1], "best.safetensors"):
        kind = (FORMAT, SCHEMA_VERSION) if name.startswith("state") else ("veilray-weights", "1")
        (header, tensors), (expected_header, expected) = (
            read_tensors(RunFolder(run).checkpoints / name, format=kind[0], schema_version=kind[1])
            for run in (out, undisturbed)
        )
        if _timeless(header) != _timeless(expected_header):
            found.append(f"{name}: the counters")
        if tensors.keys() != expected.keys():
            found.append(f"{name}: the tensors' names")
        found += [
            f"{name}: {key}" for key in expected.keys() & tensors.keys() if not torch.equal(expected[key], tensors[key])
        ]
    losses, expected_losses = (
        [(record.step, record.train_loss, record.validation_loss) for record in RunFolder(run).epochs()]
        for run in (out, undisturbed)
    )
    return found + (["metrics.jsonl"] if losses != expected_losses else [])


def told(finished: Finished) -> list[str]:
    """What Veilray said on standard error, apart from what is said in passing."""
    return [line for line in finished.lines if line.startswith("veilray:")]


def wrong_after_kills(faults: Sequence[Fault], finished: Finished, out: Path, undisturbed: Path) -> list[str]:
    """What is wrong with a training that met faults of `KILLS` and was started again after each; empty if nothing.

    Each life must end with one message, the last one in the undisturbed training's weights.
    """
    lines = told(finished)
    if finished.status != 0:
        return [f"status {finished.status}: {lines}"]
    wrong = [f"{len(lines)} messages for {len(faults)} faults: {lines}"] if len(lines) != len(faults) else []
    wrong += [f"another message: {line}" for line in lines if not line.startswith(LOST)]
    wrong += [f"a traceback: {text}" for text in _tracebacks(finished.err)]
    return wrong + differences(out, undisturbed) + _left_behind(out)


def _tracebacks(text: str) -> list[str]:
    """What follows each `Traceback` of a process's standard error, for whoever has to find its cause."""
    return [part[:TRACEBACK_CHARACTERS] for part in text.split("Traceback")[1:]]


def wrong_after_full_disk(finished: Finished, out: Path) -> list[str]:
    """What is wrong with a training whose lead could not write a checkpoint."""
    wrong = ["status 0 in spite of a full disk"] if finished.status == 0 else []
    lines = told(finished)
    if len(lines) != 1 or "file too large" not in lines[0]:
        wrong.append(f"not one message of a full disk: {lines}")
    for path in checkpoints(RunFolder(out).checkpoints):
        read_tensors(path, format=FORMAT, schema_version=SCHEMA_VERSION)  # whole, or it raises
    return wrong + _left_behind(out)


def wrong_after_interruption(finished: Finished, out: Path) -> list[str]:
    """What is wrong with a training that was stopped by Ctrl-C."""
    lines = told(finished)
    said = len(lines) == 1 and lines[0].startswith("veilray: stopped after a checkpoint; go on with: veilray train")
    return ([] if said and finished.status != 0 else [f"status {finished.status}: {lines}"]) + _left_behind(out)


def _left_behind(out: Path) -> list[str]:
    return [f"left behind: {path.name}" for path in RunFolder(out).checkpoints.glob(".*")]


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("state-"))


def _timeless(header: dict[str, str]) -> dict[str, object]:
    if "state" not in header:
        return dict(header)
    scalars = json.loads(header["state"])
    for name in ("seconds", "epoch_seconds", "parts"):
        del scalars["counters"][name]
    return {**header, "state": scalars}


if sys.platform != "linux":
    raise ImportError("faults are made by Linux's signals and limits")
