"""The training loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import ParamSpec, Protocol

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
from veilray.training.state import Counters, TrainingState, checkpoints
from veilray.training.step import Signals, Stepper
from veilray.training.timing import PartClock
from veilray.training.validation import validate
from veilray.training.writer import CheckpointWriter

Given = ParamSpec("Given")


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

    Of a group only the lead touches the run folder. Where it fails there, or any rank is asked to stop, its `signals`
    carry that to the exchange of the next step, so that all ranks end after the same one: with the failure, or after a
    checkpoint. A validation that somebody wants to stop is given up by all, and done when the training goes on.

    `beat` is called whenever the training gets on. Raises TrainingError where the loss, or 20 fp16 gradients in a row,
    are not finite; LostRankError where another rank has gone; ToldElsewhere where another rank tells the user why.
    """
    config = resolved(with_objective(config, images.choice), device)
    group, clock = setup.group, PartClock(device, on_lap=beat)
    with fails_together(group):
        config = with_pinned_files(config)
    state = _start(config, run, setup, device, watcher)
    stepper, signals = Stepper(state, config, setup, clock), Signals()
    counters, steps = state.counters, images.steps_per_epoch()
    watcher.begin(images=images.images_before(counters.step))
    batches = prefetched(
        lambda step: images.training_parts(*divmod(step, steps), device, group),
        range(counters.step, config.train.epochs * steps),
        ahead=config.launch.prefetch,
    )

    with (
        CheckpointWriter(run, noise=images.noise, recorruption=_recorruption(config)) as writer,
        deferred_interruption(patient=group.joined) as interruption,
        closing(batches),
        lost_ranks_explained(),
        unrounded_fp32(config),
    ):
        clock.start()
        while not counters.finished and not signals.stop:
            if not _validation_is_due(counters, config, steps):
                batch = next(batches)
                clock.lap("data")
                signals.interrupted = interruption.requested
                signals.failure = signals.failure or writer.failure
                rate = learning_rate(config.train, step=counters.step, total_steps=config.train.epochs * steps)
                taken = stepper.take(batch, rate=rate, signals=signals)
                counters.take(loss=taken.loss, images=batch.images, seconds=clock.elapsed())
                watcher.step(step=counters.step, images=batch.images, loss=taken.loss)
                signals.stop = taken.interrupted if group.joined else interruption.requested

            record = None
            if _validation_is_due(counters, config, steps) and not signals.stop:
                record = _validated(state, images, config, clock, device, group, lambda: interruption.requested)
                signals.stop = record is None
            if record is not None:
                _on_lead(group, signals, run.append, record)
                watcher.epoch(record)
            if record is not None or signals.stop or clock.minutes_unsaved() > config.launch.checkpoint_minutes:
                counters.spend(clock.take())
                best = record is not None and counters.best_epoch == record.epoch
                _on_lead(group, signals, writer.save, state, best=best)
                clock.lap("checkpoint")
                counters.seconds += clock.elapsed()
        if signals.stop:
            interruption.follow()  # on the ranks, too, that nobody has asked
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


def _validation_is_due(counters: Counters, config: RunConfig, steps: int) -> bool:
    """Whether the last step ended an epoch with a validation that has not been done; `steps`: of an epoch."""
    epoch, index = divmod(counters.step, steps)
    return index == 0 and counters.epoch_images > 0 and config.train.validates_after(epoch)


def _validated(
    state: TrainingState,
    images: TrainingImages,
    config: RunConfig,
    clock: PartClock,
    device: torch.device,
    group: Group,
    stops: Callable[[], bool],
) -> EpochRecord | None:
    """Validate and close the epoch; None where a rank was asked to stop meanwhile, and the validation is still due."""
    found = validate(state.average.model, images, config, device, group, clock, stops)
    counters, steps = state.counters, images.steps_per_epoch()
    counters.seconds += clock.elapsed()
    if found is None:
        return None
    counters.spend(clock.take())
    return counters.close_epoch(
        epoch=counters.step // steps,
        rate=learning_rate(config.train, step=counters.step - 1, total_steps=config.train.epochs * steps),
        validation_loss=found[0],
        validation_psnr=found[1],
        config=config.train,
        peak_memory_bytes=max(group.gather(peak_memory_bytes(device))),
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
    # Where the epoch of the last step has not been closed, a record of it comes from a later life.
    run.forget_after(state.counters.step - bool(state.counters.epoch_images))


def _on_lead(
    group: Group, signals: Signals, write: Callable[Given, object], *arguments: Given.args, **options: Given.kwargs
) -> None:
    """Write on the lead; see `train` for what becomes of a failure."""
    if not group.is_lead or signals.failure is not None:
        return
    try:
        write(*arguments, **options)
    except Exception as error:
        if not group.joined:
            raise
        signals.failure = error
