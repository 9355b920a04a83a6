"""Section of gpu.py: two ranks over gloo that share the device, against one process with the same global batch.

Run by gpu.py as one process a rank, in torchrun's environment. Sharing a GPU shows that the exchange is exact there; it
says nothing of the speed on two GPUs.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpu_record import Record, Scope
from gpu_throughput import timed, training_step
from ranks import run_ranks
from veilray.models.build import build_model
from veilray.parallel.group import Group, share
from veilray.parallel.joining import joined
from veilray.parallel.workers import available_cores
from veilray.training.config import RunConfig
from veilray.training.objectives import SupervisedObjective
from veilray.training.setup import Setup

RANKS = 2
FLOOR = 1e-9
"""Norm of a tensor's gradient under which it is zero but for rounding."""


def measure(record: Record, scope: Scope, device: torch.device, *, arguments: list[str]) -> None:
    """Start the ranks, each a process of gpu.py; rank 0 records what it finds, and hands back its rate."""
    words = ["--section", "rank", *arguments]
    threads = max(1, available_cores() // RANKS)
    rate = run_ranks(str(Path(__file__).parent / "gpu.py"), words, ranks=RANKS, threads=threads)
    record.put(rate, "two_ranks", "images_per_s", "two ranks sharing the device, gloo")
    alone = training_step(_config("bf16", scope), Setup(), device, batch=RANKS * scope.batch_of_a_rank, size=scope.size)
    record.put(_rate(alone, scope, device), "two_ranks", "images_per_s", "one process")


def rank(record: Record, scope: Scope, device: torch.device) -> None:
    """One rank: compare gradients, then time steps; rank 0 prints the images a second of all."""
    with joined(device, shared=True, timeout=60.0) as group:
        own = group.device(device, shared=True)
        for dtype in (torch.float64, torch.float32):
            figures = _gradient_difference(group, own, dtype, scope)
            if group.is_lead:
                record.put(figures, "two_ranks", "gradients", str(dtype).removeprefix("torch."))
        setup = Setup("ddp", group)
        step = training_step(_config("bf16", scope), setup, own, batch=scope.batch_of_a_rank, size=scope.size)
        # As many steps on every rank: each waits for the others.
        seconds = [value for _ in range(3) for value in timed(step, own, scope, at_least=0.0)]
        if group.is_lead:
            print(json.dumps(RANKS * scope.batch_of_a_rank / statistics.median(seconds)))


def _gradient_difference(group: Group, device: torch.device, dtype: torch.dtype, scope: Scope) -> dict[str, Any]:
    """Relative L2 of the gradient over ranks against that of one process, of the same weights and the whole batch."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    config = _config("fp32", scope, norm="group")  # statistics of each image alone, so that no exchange is needed
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(RANKS * scope.batch_of_a_rank, 1, scope.size, scope.size, generator=generator, dtype=dtype).to(
        device
    )
    noisy = (clean + 0.2 * torch.randn(clean.shape, generator=generator, dtype=dtype).to(device)).clamp(0.0, 1.0)
    whole = _objective(config, device, dtype)
    whole(noisy, clean).mean().backward()
    over_ranks = _objective(config, device, dtype)
    wrapped = Setup("ddp", group).wrap(over_ranks, config, on_gradients_ready=lambda: None)
    mine = share(len(clean), group)
    losses = wrapped(noisy[mine.start : mine.stop], clean[mine.start : mine.stop])
    (losses.sum() * group.world_size / len(clean)).backward()
    pairs = list(zip(_gradients(over_ranks), _gradients(whole), strict=True))
    apart = sum((one - other).square().sum().item() for one, other in pairs) ** 0.5
    length = sum(other.square().sum().item() for _, other in pairs) ** 0.5
    figures = {"relative_l2": apart / length, "width": scope.width}
    if dtype == torch.float64:  # in fp32, tensors whose gradient is next to nothing are all rounding
        of_tensors = [((one - other).norm() / other.norm()).item() for one, other in pairs if other.norm() > FLOOR]
        figures["largest_relative_l2_of_a_tensor"] = max(of_tensors)
    return figures


def _objective(config: RunConfig, device: torch.device, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(2)
    model = build_model(config.model).to(device, dtype)
    return SupervisedObjective(model, loss="l1", deep_supervision=False)


def _gradients(objective: nn.Module) -> list[Tensor]:
    return [parameter.grad.double() for parameter in objective.parameters() if parameter.grad is not None]


def _rate(step: Any, scope: Scope, device: torch.device) -> float:
    return RANKS * scope.batch_of_a_rank / statistics.median(timed(step, device, scope))


def _config(precision: str, scope: Scope, *, norm: str = "batch") -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"width": scope.width, "norm": norm, "residual": True},
            "train": {"batch_size": RANKS * scope.batch_of_a_rank},
            "launch": {"setup": "auto", "precision": precision, "layout": "channels_last"},
        }
    )
