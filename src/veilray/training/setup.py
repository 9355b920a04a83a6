"""Set-ups: one device, nn.DataParallel, or one process a device (DistributedDataParallel).

What differs between them is here, so that the loop and its step are the same for all.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from veilray.errors import UsageError
from veilray.parallel.group import ALONE, Group
from veilray.parallel.workers import available_cores
from veilray.training.config import LaunchConfig, RunConfig

SetupName = Literal["single", "dp", "ddp"]


@dataclass(frozen=True)
class Setup:
    """How a training is spread over devices."""

    name: SetupName = "single"
    group: Group = ALONE
    devices: tuple[int, ...] = field(default=())
    """`dp`: numbers of the GPUs; empty where it is one device."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network with batch statistics over all ranks, where it has any."""
        if self.name != "ddp" or not has_batch_norm(model):
            return model
        from veilray.parallel.batch_norm import synchronised

        return synchronised(model, self.group)

    def wrap(self, objective: nn.Module, config: RunConfig, *, on_gradients_ready: Callable[[], None]) -> nn.Module:
        """The objective that gives each process its gradients of the whole batch, compiled where that is asked for.

        `on_gradients_ready` is called in each backward pass when only other ranks are waited for, under ddp.
        """
        match self.name:
            case "single":
                wrapped = objective
            case "dp":
                wrapped = nn.DataParallel(objective, device_ids=list(self.devices)) if self.devices else objective
            case "ddp":
                wrapped = self._distributed(objective, config)
                # The first layer's gradient is the last to be computed.
                first = next(parameter for parameter in objective.parameters() if parameter.requires_grad)
                first.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda parameter: on_gradients_ready()
                )
        if config.launch.compile:
            wrapped.compile()
        return wrapped

    def exchange(self, objective: nn.Module, *, now: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a forward and backward pass: whether gradients cross ranks in it, or only pile up on this one."""
        if isinstance(objective, DistributedDataParallel) and not now:
            return objective.no_sync()
        return contextlib.nullcontext()

    def _distributed(self, objective: nn.Module, config: RunConfig) -> nn.Module:
        device = next(objective.parameters()).device
        # Statistics, where there are any, are the same on all ranks already.
        new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        unsynced: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        module = DistributedDataParallel(
            objective,
            device_ids=[device.index] if device.type == "cuda" else None,
            bucket_cap_mb=config.launch.bucket_mb,
            gradient_as_bucket_view=True,
            # A static graph can neither pile gradients up (no_sync) nor be compiled in pieces.
            static_graph=config.train.accumulate == 1 and not config.launch.compile,
            **unsynced,
        )
        if config.launch.compression == "bf16":
            from veilray.parallel.compression import compress_gradients

            compress_gradients(module, self.group)
        return module


def choose_setup(config: RunConfig, group: Group, device: torch.device, *, devices: int | None = None) -> Setup:
    """The set-up that a configuration asks for, on the devices there are; `devices`: how many `dp` is to use.

    Raises UsageError where it cannot be had.
    """
    launch, train = config.launch, config.train
    if launch.compile and train.loss == "adversarial":
        raise UsageError(
            "train.loss = 'adversarial' trains two networks at once, uncompiled; set launch.compile = false"
        )
    name: SetupName = ("ddp" if group.joined else "single") if launch.setup == "auto" else launch.setup
    if devices is not None and devices < 1:
        raise UsageError(f"--devices {devices}: give a number of devices, 1 or more")
    if devices is not None and group.joined:
        raise UsageError(f"--devices {devices}: torchrun has started {group.world_size} ranks already; leave it out")
    if devices is not None and devices != 1 and name == "single":
        raise UsageError(f"--devices {devices}: launch.setup = 'single' is one device; set launch.setup = 'auto'")
    if name != "ddp" and group.world_size > 1:
        raise UsageError(f"launch.setup = '{name}' is one process, but torchrun started {group.world_size}; set 'ddp'")
    if name == "ddp":
        if not group.joined:
            raise UsageError(
                "launch.setup = 'ddp' is one process a device: add --devices N, or start under torchrun; "
                "or set launch.setup = 'auto'"
            )
        check_batch(config, group.world_size)
        return Setup("ddp", group)
    if launch.compression != "none":
        raise UsageError(f"launch.compression = '{launch.compression}' is for gradients that cross ranks: setup 'ddp'")
    gpus = _gpus(device, devices) if name == "dp" else ()
    if gpus and launch.compile:
        raise UsageError("launch.compile does not work with launch.setup = 'dp' over several GPUs; use 'ddp'")
    if gpus and train.loss == "adversarial":
        raise UsageError(
            "train.loss = 'adversarial' trains two networks at once, and not with launch.setup = 'dp' over several "
            "GPUs; use 'ddp'"
        )
    if train.batch_size % max(1, len(gpus)):
        check_batch(config, len(gpus))
    return Setup(name, group, gpus)


def check_batch(config: RunConfig, world_size: int) -> None:
    """Raise UsageError unless each rank gets as much of every full batch, and of its parts, as the others."""
    size, parts = config.train.batch_size, config.train.accumulate
    if size % (world_size * parts):
        each = f"{world_size} devices" if parts == 1 else f"{world_size} devices x train.accumulate = {parts}"
        lower = size // (world_size * parts) * world_size * parts
        near = " or ".join(str(value) for value in (lower, lower + world_size * parts) if value)
        raise UsageError(f"train.batch_size = {size} cannot be shared out evenly over {each}; take {near}")


def statements(config: RunConfig, setup: Setup, device: torch.device) -> list[str]:
    """What the user must know of the set-up before the first step."""
    said = []
    train, group = config.train, setup.group
    normalised = config.model.has_batch_norm
    if idle := _without_effect(config, setup):
        said.append(f"{', '.join(idle)}: without effect in one process; only `ddp` exchanges anything")
    match setup.name:
        case "ddp":
            local = train.batch_size // group.world_size
            ranks = _counted("rank", group.world_size)
            said.append(f"ddp: {ranks} over {group.backend}, {local} images a rank and step")
            said += _threads_said(group, device)
        case "dp" if not setup.devices:
            said.append(f"dp: there is one device ({device.type}), so that DataParallel is the same as `single`")
        case "dp":
            said.append(f"dp: one process spreads each batch over {len(setup.devices)} GPUs; `ddp` is faster")
            if normalised:
                said.append(
                    "dp: batch normalisation sees each GPU's share of the batch alone, and keeps the first GPU's "
                    "statistics: this is different training from `single` and `ddp`; model.norm = 'group' is the same"
                )
    if normalised and train.accumulate > 1:
        said.append(f"batch normalisation sees 1/{train.accumulate} of each batch at a time: different training")
    if train.learning_rate_scaling != "none":
        said.append(
            f"learning rate {train.learning_rate:g} at batch size {train.reference_batch_size}, scaled "
            f"({train.learning_rate_scaling}) to {train.peak_learning_rate:g} at {train.batch_size}"
        )
    return said


def _without_effect(config: RunConfig, setup: Setup) -> list[str]:
    """Settings of `ddp` that were set, though this is another set-up."""
    if setup.name == "ddp":
        return []
    names = ("bucket_mb", "share_device", "timeout_seconds")
    chosen, default = config.launch, LaunchConfig()
    return [f"launch.{name}" for name in names if getattr(chosen, name) != getattr(default, name)]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a network normalises over the batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def facts(config: RunConfig, setup: Setup) -> dict[str, Any]:
    """What `environment.json` says of the set-up."""
    return {
        "setup": setup.name,
        "world_size": setup.group.world_size,
        "backend": setup.group.backend,
        "devices": max(1, len(setup.devices), setup.group.world_size),
        "peak_learning_rate": config.train.peak_learning_rate,
        "launch_id": launch_id(),
    }


def life(config: RunConfig, setup: Setup) -> dict[str, Any]:
    """What an entry of `lives` in `environment.json` says of a training from one start to its end."""
    return {**facts(config, setup), "launch": config.launch.model_dump(mode="json")}


def launch_id() -> str | None:
    """What names this launch through all its restarts: torchrun's --rdzv-id, where there is one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else name


def _gpus(device: torch.device, wanted: int | None) -> tuple[int, ...]:
    """GPUs of DataParallel; none where it would be one device."""
    on_gpus = device.type == "cuda"
    there = torch.cuda.device_count() if on_gpus else 1
    if wanted is not None and wanted > there:
        why = f"this machine has {there}" if on_gpus else f"there is none in use: the device is {device.type}"
        raise UsageError(
            f"launch.setup = 'dp' with --devices {wanted}: nn.DataParallel spreads each batch over GPUs, and {why}"
        )
    count = there if wanted is None else wanted
    return tuple(range(count)) if count > 1 else ()


def _threads_said(group: Group, device: torch.device) -> list[str]:
    cores, threads = available_cores(), torch.get_num_threads()
    fair = max(1, cores // group.local_world_size)
    if device.type != "cpu" or threads == fair:
        return []
    here = f"{_counted('rank', group.local_world_size)} on {_counted('core', cores)} of {socket.gethostname()}"
    return [f"ddp: {_counted('thread', threads)} a rank, {here}; OMP_NUM_THREADS={fair} shares them out"]


def _counted(noun: str, count: int) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
