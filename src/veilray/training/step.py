"""One optimiser step, the same at any world size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from veilray.errors import ToldElsewhere, TrainingError, VeilrayError
from veilray.training.batch import Batch, TrainingParts
from veilray.training.config import RunConfig
from veilray.training.objectives.build import build_objective
from veilray.training.setup import Setup
from veilray.training.state import ANEW, TrainingState
from veilray.training.timing import PartClock

MAX_SKIPS = 20
_WIDER = {"fp16": ", or try launch.precision = 'bf16' or 'fp32'", "bf16": ", or try launch.precision = 'fp32'"}
"""What may help besides where a loss in this arithmetic is not finite."""


@dataclass(kw_only=True)
class Signals:
    """What a rank has to tell the others at its next step, and what they have agreed on."""

    interrupted: bool = False
    """Somebody has asked this process to stop."""
    failure: Exception | None = None
    """Why this rank cannot go on, where that came up outside the step: a disk that is full, for one."""
    stop: bool = False
    """All ranks stop after a checkpoint, because one of them has been asked to."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """How a step went; the same on every rank."""

    loss: float
    """Mean over the whole batch, at the weights before the step."""
    interrupted: bool
    """Whether some rank has been asked to stop."""


class Stepper:
    """Takes optimiser steps.

    The gradient of a batch is the sum of its images' gradients over their number, whichever rank an image falls to.
    Ranks agree on each step by one exchange, which begins before the last backward pass and so costs little: the sum of
    losses, and whether a rank was interrupted or has failed.
    """

    def __init__(self, state: TrainingState, config: RunConfig, setup: Setup, clock: PartClock) -> None:
        self._state = state
        self._config = config
        self._setup = setup
        self._clock = clock
        objective = build_objective(state.model, config, discriminator=state.discriminator)
        self._objective = setup.wrap(objective, config, on_gradients_ready=clock.gradients_ready)

    def take(self, batch: TrainingParts, *, rate: float, signals: Signals) -> Taken:
        """One step on a batch, at a learning rate.

        Raises TrainingError, on all ranks, where the loss or 20 fp16 gradients in a row are not finite, and `failure`
        of the rank that has one; the ranks that need not tell it raise ToldElsewhere.
        """
        self._objective.train()
        for group in self._state.optimizer.param_groups:
            group["lr"] = rate * group.get("pace", 1.0)
        self._state.optimizer.zero_grad(set_to_none=True)
        agreement = self._gradients(batch, signals)
        taken = self._agreed(agreement(), batch.images, signals, rate)
        self._clock.lap("all_reduce" if self._setup.group.joined else "backward")
        self._update(rate)
        self._clock.lap("update")
        return taken

    def _gradients(self, batch: TrainingParts, signals: Signals) -> Callable[[], Tensor]:
        """Add up the gradient; the function returned waits for what the ranks agree on."""
        *before, last = batch.parts
        total: Tensor | float = 0.0
        for part in before:
            with self._setup.exchange(self._objective, now=False):
                loss = self._forward(part)
                total = total + loss.detach()
                self._backward(loss, batch.images)
        with self._setup.exchange(self._objective, now=True):
            loss = self._forward(last)
            agreement = self._begin_agreement(total + loss.detach(), signals)
            self._backward(loss, batch.images)
        return agreement

    def _forward(self, part: Batch) -> Tensor:
        """The sum of the losses of a part's images."""
        loss: Tensor = self._objective(*part.arguments(self._config.model)).sum()
        self._clock.lap("forward")
        return loss

    def _backward(self, loss: Tensor, images: int) -> None:
        ranks = self._setup.group.world_size  # ddp takes the mean over them; we want the sum
        self._state.scaler.scale(loss * ranks / images).backward()  # type: ignore[no-untyped-call]
        self._clock.lap_backward()

    def _begin_agreement(self, total: Tensor, signals: Signals) -> Callable[[], Tensor]:
        """Begin to add up (sum of losses, ranks interrupted, ranks that failed) over all ranks, or over one."""
        # MPS has no float64, and no ranks between which a sum could be rounded.
        dtype = torch.float32 if total.device.type == "mps" else torch.float64
        message = torch.zeros(3, dtype=dtype, device=total.device)
        message[0] = total
        message[1] = signals.interrupted
        message[2] = signals.failure is not None
        return self._setup.group.sum_later_(message)

    def _agreed(self, message: Tensor, images: int, signals: Signals, rate: float) -> Taken:
        total, interrupted, failed = message.tolist()
        if signals.failure is not None:
            raise signals.failure
        if failed:
            raise ToldElsewhere(VeilrayError.exit_status)
        loss = total / images
        if not math.isfinite(loss):
            raise self._told_by_lead(
                f"the loss is {loss} at step {self._number}, learning rate {rate:g}: lower train.learning_rate or set "
                f"train.clip_norm{_WIDER.get(self._config.launch.precision, '')}, {ANEW}"
            )
        return Taken(loss=loss, interrupted=bool(interrupted))

    def _update(self, rate: float) -> None:
        state, scaler = self._state, self._state.scaler
        scaler.unscale_(state.optimizer)
        largest = self._config.train.clip_norm or float("inf")
        networks = [state.model] if state.discriminator is None else [state.model, state.discriminator]
        norms = [nn.utils.clip_grad_norm_(network.parameters(), largest) for network in networks]
        finite = bool(torch.stack(norms).isfinite().all())
        if not finite and not scaler.is_enabled():
            raise self._told_by_lead(
                f"the gradient is not finite at step {self._number}, learning rate {rate:g}: lower "
                f"train.learning_rate, {ANEW}"
            )
        if finite:
            scaler.step(state.optimizer)
        scaler.update()  # lowers the scale where a scaled gradient was not finite
        if finite:
            state.average.update(state.model, step=self._number)
            state.counters.skipped_in_a_row = 0
            return
        state.counters.skipped_in_a_row += 1
        if state.counters.skipped_in_a_row >= MAX_SKIPS:
            raise self._told_by_lead(
                f"{MAX_SKIPS} fp16 gradients in a row were not finite, up to step {self._number}, learning rate "
                f"{rate:g}: lower train.learning_rate, or use launch.precision = 'bf16', {ANEW}"
            )

    @property
    def _number(self) -> int:
        """Of this step, counted from 1."""
        return self._state.counters.step + 1

    def _told_by_lead(self, message: str) -> VeilrayError:
        """An error that every rank comes upon in the same step."""
        return TrainingError(message) if self._setup.group.is_lead else ToldElsewhere(TrainingError.exit_status)
