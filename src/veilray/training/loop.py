"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch

from veilray.errors import CutShortError, RunError
from veilray.files import remove_parts
from veilray.models.build import build_model
from veilray.obfuscation.config import Recorruption
from veilray.parallel.devices import peak_memory_bytes
from veilray.parallel.group import Group, fails_together, lost_ranks_explained
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.interruption import deferred_interruption
from veilray.training.launch import memory_format, resolved, unrounded_fp32
from veilray.training.objectives.choose import with_objective
from veilray.training.objectives.supervised import discriminator_of
from veilray.training.prefetch import prefetched
from veilray.training.run import EpochRecord, RunFolder
from veilray.training.schedule import learning_rate
from veilray.training.setup import Setup
from veilray.training.start import starting_weights, with_pinned_files
from veilray.training.state import TrainingState, checkpoints
from veilray.training.step import Signals, Stepper
from veilray.training.timing import PartClock
from veilray.training.validation import validate
from veilray.training.writer import CheckpointWriter


class Watcher(Protocol):
    """Who follows a training: a progress bar, TensorBoard, a test."""

    def begin(self, *, images: int) -> None:
        """Before the first step; `images` have been trained on already where the training goes on."""

    def step(self, *, step: int, images: int, loss: float) -> None:
        """After each optimiser step."""

    def epoch(self, record: EpochRecord) -> None:
        """After each validation."""

    def note(self, message: str) -> None:
        """Something the user must know."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended."""

    best_epoch: int
    best_loss: float
    stopped_early: bool
    interrupted: bool
    """By Ctrl-C or SIGTERM, after a checkpoint; it can be resumed."""


def train(
    config: RunConfig,
    images: TrainingImages,
    run: RunFolder,
    *,
    device: torch.device,
    watcher: Watcher,
    setup: Setup = Setup(),  # noqa: B008 - frozen
    beat: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train until the last epoch, an early stop or an interruption; goes on from the last complete checkpoint, if any.

    Of a group only the lead touches the run folder. `beat` is called whenever the training gets on. Raises
    TrainingError where the loss, or 20 fp16 gradients in a row, are not finite; LostRankError where another rank has
    gone; ToldElsewhere where another rank tells the user why.
    """
    config = resolved(with_objective(config, images.choice), device)
    group, clock = setup.group, PartClock(device, on_lap=beat)
    with fails_together(group):
        config = with_pinned_files(config)
    state = _start(config, run, setup, device, watcher)
    stepper = Stepper(state, config, setup, clock)
    counters, steps = state.counters, images.steps_per_epoch()
    watcher.begin(images=images.images_before(counters.step))
    batches = prefetched(
        lambda step: images.training_parts(*divmod(step, steps), device, group),
        range(counters.step, config.train.epochs * steps),
        ahead=config.launch.prefetch,
    )
    lap, since_checkpoint, signals = _Stopwatch(), _Stopwatch(), Signals()

    with (
        CheckpointWriter(run, noise=images.noise, recorruption=_recorruption(config)) as writer,
        deferred_interruption(patient=group.joined) as interruption,
        closing(batches),
        lost_ranks_explained(),
        unrounded_fp32(config),
    ):
        clock.start()
        while not counters.finished:
            epoch, index = divmod(counters.step, steps)
            rate = learning_rate(config.train, step=counters.step, total_steps=config.train.epochs * steps)
            batch = next(batches)
            clock.lap("data")
            signals.interrupted = interruption.requested
            signals.failure = signals.failure or writer.failure
            taken = stepper.take(batch, rate=rate, signals=signals)
            counters.take(loss=taken.loss, images=batch.images, seconds=lap.restart())
            watcher.step(step=counters.step, images=batch.images, loss=taken.loss)

            validates = index + 1 == steps and config.train.validates_after(epoch + 1)
            if validates:
                validation_loss, validation_psnr = validate(state.average.model, images, config, device, group, clock)
                counters.seconds += lap.restart()
                counters.spend(clock.take())
                record = counters.close_epoch(
                    epoch=epoch + 1,
                    rate=rate,
                    validation_loss=validation_loss,
                    validation_psnr=validation_psnr,
                    config=config.train,
                    peak_memory_bytes=max(group.gather(peak_memory_bytes(device))),
                )
                _on_lead(group, signals, lambda: run.append(record))  # noqa: B023 - called at once
                watcher.epoch(record)
            stop = taken.interrupted if group.joined else interruption.requested
            if validates or stop or since_checkpoint.minutes() > config.launch.checkpoint_minutes:
                counters.spend(clock.take())
                best = validates and counters.best_epoch == epoch + 1
                _on_lead(group, signals, lambda: writer.save(state, best=best))  # noqa: B023 - called at once
                counters.seconds += lap.restart()
                clock.lap("checkpoint")
                since_checkpoint.restart()
            if stop:
                interruption.requested = True  # on the ranks, too, that nobody has asked
                break
        _on_lead(group, signals, writer.finish)
    with fails_together(group):
        if signals.failure is not None:
            raise signals.failure

    return Outcome(
        best_epoch=counters.best_epoch,
        best_loss=counters.best_loss,
        stopped_early=counters.finished and counters.step < config.train.epochs * steps,
        interrupted=not counters.finished,
    )


def _start(config: RunConfig, run: RunFolder, setup: Setup, device: torch.device, watcher: Watcher) -> TrainingState:
    """The state at the first step, or at the newest checkpoint that is complete; the same on every rank."""
    torch.manual_seed(config.seed)  # the one place that touches the global generator: initial weights come from it
    model = build_model(config.model).to(device)
    model.to(memory_format=memory_format(config.launch))  # type: ignore[call-overload]
    discriminator = discriminator_of(config)  # after the network, whose initial weights no objective changes
    state = TrainingState(
        setup.prepare(model),
        config.train,
        device=device,
        scale_loss=config.launch.precision == "fp16",
        discriminator=None if discriminator is None else discriminator.to(device),
    )
    with fails_together(setup.group):
        if setup.group.is_lead:
            _restore_newest(state, run, watcher)
            if config.train.start and not state.counters.step:
                state.begin_from(starting_weights(config).tensors)
    if config.train.start or setup.group.broadcast(state.counters.step):
        state.share(setup.group)
    return state


def _recorruption(config: RunConfig) -> Recorruption | None:
    """The noise that the network wants added at inference."""
    train = config.train
    return Recorruption(strength=train.recorruption, count=train.recorruptions) if train.recorruption else None


def _restore_newest(state: TrainingState, run: RunFolder, watcher: Watcher) -> None:
    remove_parts(run.checkpoints)
    for path in reversed(checkpoints(run.checkpoints)):
        try:
            state.restore(path)
            watcher.note(f"going on from step {state.counters.step} ({path.name})")
            break
        except CutShortError:
            watcher.note(f"{path.name} is not complete; looking for one before it")
    else:
        if checkpoints(run.checkpoints):
            raise RunError(f"no checkpoint in {run.checkpoints} is complete; begin a new run in another folder")
    run.forget_after(state.counters.step)


def _on_lead(group: Group, signals: Signals, write: Callable[[], object]) -> None:
    """Write on the lead. In a group a failure is kept for the next step, where all ranks learn of it and end."""
    if not group.is_lead or signals.failure is not None:
        return
    try:
        write()
    except Exception as error:
        if not group.joined:
            raise
        signals.failure = error


class _Stopwatch:
    """Seconds since it was last started."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def restart(self) -> float:
        """Seconds since the last start; starts again."""
        now = time.perf_counter()
        elapsed, self._start = now - self._start, now
        return elapsed

    def minutes(self) -> float:
        """Minutes since the last start."""
        return (time.perf_counter() - self._start) / 60
