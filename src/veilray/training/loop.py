"""The training loop."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from veilray.errors import CutShortError, RunError, TrainingError
from veilray.metrics.psnr import psnr
from veilray.models.build import build_model
from veilray.models.weights import save_weights
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.interruption import deferred_interruption
from veilray.training.launch import autocast, laid_out, memory_format, resolved
from veilray.training.objectives import SupervisedObjective, image_losses
from veilray.training.prefetch import prefetched
from veilray.training.run import EpochRecord, RunFolder
from veilray.training.schedule import learning_rate
from veilray.training.state import Counters, TrainingState, checkpoints

MAX_SKIPS = 20


class Watcher(Protocol):
    """Who follows a training: a progress bar, TensorBoard, a test."""

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
    config: RunConfig, images: TrainingImages, run: RunFolder, *, device: torch.device, watcher: Watcher
) -> Outcome:
    """Train until the last epoch, an early stop or an interruption; goes on from the last complete checkpoint, if any.

    Raises TrainingError where the loss, or 20 fp16 gradients in a row, are not finite.
    """
    config = resolved(config, device)
    state = _start(config, run, device, watcher)
    counters, steps = state.counters, images.steps_per_epoch()
    objective = SupervisedObjective(state.model, loss=config.train.loss, deep_supervision=config.model.deep_supervision)
    if config.launch.compile:
        objective.compile()
    remaining = range(counters.step, config.train.epochs * steps)
    batches = prefetched(
        lambda step: images.training_batch(*divmod(step, steps), device), remaining, ahead=config.launch.prefetch
    )
    lap, since_checkpoint = _Stopwatch(), _Stopwatch()

    with deferred_interruption() as interruption, closing(batches):
        while not counters.finished:
            epoch, index = divmod(counters.step, steps)
            rate = learning_rate(config.train, step=counters.step, total_steps=config.train.epochs * steps)
            batch = next(batches)
            loss = _step(objective, state, batch.noisy, batch.clean, rate, config)
            counters.take(loss=loss, images=len(batch.rows), seconds=lap.restart())
            watcher.step(step=counters.step, images=len(batch.rows), loss=loss)

            epoch_ends = index + 1 == steps
            if epoch_ends:
                validation_loss, validation_psnr = _validate(state.average.model, images, config, device)
                counters.seconds += lap.restart()
                record = counters.close_epoch(
                    epoch=epoch + 1,
                    rate=rate,
                    validation_loss=validation_loss,
                    validation_psnr=validation_psnr,
                    config=config.train,
                )
                if counters.best_epoch == record.epoch:
                    save_weights(run.best_weights, state.average.model, noise=images.noise)
                run.append(record)
                watcher.epoch(record)
            if epoch_ends or interruption.requested or since_checkpoint.minutes() > config.launch.checkpoint_minutes:
                state.save(run.checkpoints)
                counters.seconds += lap.restart()
                since_checkpoint.restart()
            if interruption.requested:
                break

    return Outcome(
        best_epoch=counters.best_epoch,
        best_loss=counters.best_loss,
        stopped_early=counters.finished and counters.step < config.train.epochs * steps,
        interrupted=not counters.finished,
    )


def _start(config: RunConfig, run: RunFolder, device: torch.device, watcher: Watcher) -> TrainingState:
    """The state at the first step, or at the newest checkpoint that is complete."""
    torch.manual_seed(config.seed)  # the one place that touches the global generator: initial weights come from it
    model = build_model(config.model).to(device)
    model.to(memory_format=memory_format(config.launch))  # type: ignore[call-overload]
    state = TrainingState(model, config.train, device=device, scale_loss=config.launch.precision == "fp16")
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
    return state


def _step(
    objective: nn.Module, state: TrainingState, noisy: Tensor, clean: Tensor, rate: float, config: RunConfig
) -> float:
    """One optimiser step on (N, 1, H, W) images; returns the mean loss of the batch."""
    objective.train()
    step = state.counters.step + 1
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with autocast(config.launch, noisy.device):
        loss = objective(laid_out(noisy, config.launch), clean).mean()
    value = float(loss.item())
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss is {value} at step {step}, learning rate {rate:g}: lower train.learning_rate, set "
            "train.clip_norm, or try launch.precision = 'bf16' or 'fp32'"
        )
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.train.clip_norm or float("inf"))
    finite = bool(torch.isfinite(norm))
    if not finite and not state.scaler.is_enabled():
        raise TrainingError(
            f"the gradient is not finite at step {step}, learning rate {rate:g}: lower train.learning_rate"
        )
    state.scaler.step(state.optimizer)  # leaves out a step whose scaled gradient is not finite
    state.scaler.update()
    if finite:
        state.average.update(state.model, step=step)
        state.counters.skipped_in_a_row = 0
    else:
        _count_skip(state.counters, step, rate)
    return value


def _count_skip(counters: Counters, step: int, rate: float) -> None:
    counters.skipped_in_a_row += 1
    if counters.skipped_in_a_row >= MAX_SKIPS:
        raise TrainingError(
            f"{MAX_SKIPS} fp16 gradients in a row were not finite, up to step {step}, learning rate {rate:g}: "
            "lower train.learning_rate, or use launch.precision = 'bf16'"
        )


@torch.no_grad()
def _validate(model: nn.Module, images: TrainingImages, config: RunConfig, device: torch.device) -> tuple[float, float]:
    """Mean loss and mean PSNR in dB over every validation image."""
    model.eval()
    loss = decibels = 0.0
    for batch in images.held_out_batches("validation", device, batch_size=config.train.batch_size):
        with autocast(config.launch, device):
            output = model(laid_out(batch.noisy, config.launch)).float()
        loss += image_losses(config.train.loss, output, batch.clean).double().sum().item()
        decibels += psnr(output.clamp(0.0, 1.0), batch.clean, data_range=1.0).double().sum().item()
    count = len(images.sets["validation"])
    return loss / count, decibels / count


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
