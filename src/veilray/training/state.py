"""Everything a training carries from one step to the next, and its checkpoint on disk.

A checkpoint is one safetensors file, `state-STEP.safetensors`: tensors by name, and the counters as JSON in its header.
Nothing in it is executable. Randomness needs no place in it: orders, noise and flips are functions of (seed, epoch,
image).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from veilray.errors import RunError, TrainingError
from veilray.models.tensors import read_tensors, write_tensors
from veilray.parallel.group import Group
from veilray.training.average import WeightAverage
from veilray.training.config import TrainConfig
from veilray.training.objectives.adversarial import PatchDiscriminator
from veilray.training.run import EpochRecord

FORMAT = "veilray-state"
SCHEMA_VERSION = "1"
KEPT = 2
ANEW = "in a new --out"
"""Where to train with another learning rate: a run is gone on with as it was begun."""
DISCRIMINATOR_BETAS = (0.5, 0.999)
"""Decays of Adam's moments for a discriminator (Radford, Metz and Chintala, ICLR 2016)."""


@dataclass(kw_only=True)
class Counters:
    """Where a training stands."""

    step: int = 0
    """Optimiser steps done, skipped ones included."""
    epoch_loss: float = 0.0
    """Sum of the image losses since the last validation, which may be several epochs (`train.validate_every`)."""
    epoch_images: int = 0
    """Images seen since then."""
    epoch_seconds: float = 0.0
    """Time of the steps since then."""
    best_loss: float = float("inf")
    """Lowest validation loss so far."""
    best_epoch: int = 0
    """Epoch of that loss, counted from 1."""
    skipped_in_a_row: int = 0
    """Steps skipped since the last one that was taken, because an fp16 gradient was not finite."""
    seconds: float = 0.0
    """Training time so far, validation included."""
    finished: bool = False
    """Whether the training has ended."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of each part since the last epoch's record."""

    def spend(self, parts: Mapping[str, float]) -> None:
        """Add seconds of parts."""
        for part, seconds in parts.items():
            self.parts[part] = self.parts.get(part, 0.0) + seconds

    def take(self, *, loss: float, images: int, seconds: float) -> None:
        """Count an optimiser step."""
        self.step += 1
        self.epoch_loss += loss * images
        self.epoch_images += images
        self.epoch_seconds += seconds
        self.seconds += seconds

    def close_epoch(
        self,
        *,
        epoch: int,
        rate: float,
        validation_loss: float,
        validation_psnr: float | None,
        config: TrainConfig,
        peak_memory_bytes: int = 0,
    ) -> EpochRecord:
        """Count a validation; the training ends after the last epoch, or when `patience` epochs brought nothing."""
        if not math.isfinite(validation_loss):
            raise TrainingError(
                f"the validation loss is {validation_loss} after epoch {epoch}, learning rate {rate:g}: lower "
                f"train.learning_rate or set train.clip_norm, {ANEW}"
            )
        record = EpochRecord(
            epoch=epoch,
            step=self.step,
            train_loss=self.epoch_loss / self.epoch_images,
            validation_loss=validation_loss,
            validation_psnr=validation_psnr,
            learning_rate=rate,
            images_per_second=self.epoch_images / self.epoch_seconds,
            seconds=self.seconds,
            parts=self.parts,
            peak_memory_bytes=peak_memory_bytes,
        )
        if validation_loss < self.best_loss:
            self.best_loss, self.best_epoch = validation_loss, epoch
        self.epoch_loss, self.epoch_images, self.epoch_seconds, self.parts = 0.0, 0, 0.0, {}
        self.finished = epoch == config.epochs or 0 < config.patience <= epoch - self.best_epoch
        return record


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A training at one moment, in memory that the training no longer touches."""

    step: int
    """Optimiser steps done."""
    scalars: dict[str, Any]
    tensors: dict[str, Tensor]
    """By name, on the CPU."""
    evaluated: Literal["model", "average"]
    """Which network is the one to evaluate."""

    def weights(self) -> dict[str, Tensor]:
        """The state of the network to evaluate."""
        prefix = f"{self.evaluated}/"
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def save(self, folder: Path) -> Path:
        """Write a checkpoint aside, rename it, and keep the last two. Returns its path."""
        header = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "state": json.dumps(self.scalars)}
        path = folder / f"state-{self.step:09d}.safetensors"
        write_tensors(path, self.tensors, header)
        for old in checkpoints(folder)[:-KEPT]:
            old.unlink()
        return path


class TrainingState:
    """The network, its average, its discriminator if any, the optimiser of both, the loss scaler and the counters."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        *,
        device: torch.device,
        scale_loss: bool,
        discriminator: PatchDiscriminator | None = None,
    ) -> None:
        self.model = model
        self.average = WeightAverage(model, decay=config.ema_decay)
        self.discriminator = discriminator
        self.optimizer = _optimizer(model, discriminator, config, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=scale_loss)
        self.counters = Counters()

    def snapshot(self, memory: dict[str, Tensor]) -> Snapshot:
        """The state as it is now, copied into `memory`, tensors by name on the CPU, which is filled and used again."""
        copies = {}
        for name, value in self._tensors():
            if name not in memory:
                memory[name] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            copies[name] = memory[name].copy_(value, non_blocking=value.is_cuda)
        if any(value.is_cuda for value in self.model.state_dict().values()):
            torch.cuda.synchronize()
        evaluated: Literal["model", "average"] = "model" if self.average.model is self.model else "average"
        return Snapshot(step=self.counters.step, scalars=self._scalars(), tensors=copies, evaluated=evaluated)

    def begin_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take the network's initial weights, by name, from elsewhere; before the first step."""
        self.model.load_state_dict(weights)
        self.average.model.load_state_dict(weights)

    def restore(self, path: Path) -> None:
        """Take everything from a checkpoint. RunError where it is another network's, CutShortError where not whole."""
        header, tensors = read_tensors(path, format=FORMAT, schema_version=SCHEMA_VERSION)
        self._take(json.loads(header["state"]), tensors, source=str(path))

    def share(self, group: Group) -> None:
        """Give every rank the lead's state, so that only the lead need see the run folder."""
        own = {name: value.detach().cpu().contiguous() for name, value in self._tensors()} if group.is_lead else {}
        shapes = [[name, list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in own.items()]
        sent = group.broadcast({"scalars": self._scalars(), "tensors": shapes})
        tensors = {}
        for name, shape, dtype in sent["tensors"]:
            value = own[name] if group.is_lead else torch.empty(shape, dtype=getattr(torch, dtype))
            tensors[name] = group.broadcast_(value)
        if not group.is_lead:
            self._take(sent["scalars"], tensors, source="the lead's checkpoint")

    def _scalars(self) -> dict[str, Any]:
        counters = {**asdict(self.counters), "best_loss": repr(self.counters.best_loss)}
        return {"counters": counters, "scaler": self.scaler.state_dict()}

    def _take(self, scalars: dict[str, Any], tensors: Mapping[str, Tensor], *, source: str) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        model, average, discriminator = {}, {}, {}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            match part:
                case "model":
                    model[rest] = value
                case "average":
                    average[rest] = value
                case "discriminator":
                    discriminator[rest] = value
                case "optimizer":
                    index, _, key = rest.partition("/")
                    state.setdefault(int(index), {})[key] = value
        try:
            self.model.load_state_dict(model)
            if self.average.model is not self.model:
                self.average.model.load_state_dict(average)
            if self.discriminator is not None:
                self.discriminator.load_state_dict(discriminator)
            self._restore_optimizer(state)
        except (RuntimeError, LookupError, ValueError) as error:
            first, *details = str(error).splitlines()
            reason = details[0].strip() if details else first  # load_state_dict begins with what it was asked to do
            raise RunError(f"{source} holds the weights of another network ({reason})") from None
        if scalars["scaler"]:
            self.scaler.load_state_dict(scalars["scaler"])
        counters = scalars["counters"]
        self.counters = Counters(**{**counters, "best_loss": float(counters["best_loss"])})

    def _restore_optimizer(self, state: dict[int, dict[str, Tensor]]) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, moments in state.items():
            parameter = parameters[index]
            for key, value in moments.items():
                if value.shape == parameter.shape:
                    # Fused optimisers walk through memory: the moments must lie as their parameter does.
                    moments[key] = torch.empty_like(parameter).copy_(value)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.model.state_dict().items():
            yield f"model/{name}", value
        if self.average.model is not self.model:
            for name, value in self.average.model.state_dict().items():
                yield f"average/{name}", value
        if self.discriminator is not None:
            for name, value in self.discriminator.state_dict().items():
                yield f"discriminator/{name}", value
        for index, values in self.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                yield f"optimizer/{index}/{key}", value


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(folder.glob("state-*.safetensors"))


def _optimizer(
    model: nn.Module, discriminator: nn.Module | None, config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Adam for the network, and for its discriminator with a rate and moments of its own (`pace`: see `Stepper`)."""
    fused = device.type in ("cpu", "cuda")
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if discriminator is not None:
        own = {"betas": DISCRIMINATOR_BETAS, "weight_decay": 0.0, "pace": config.discriminator_rate}
        groups.append({"params": list(discriminator.parameters()), **own})
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(groups, lr=config.learning_rate, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)
