"""Section of gpu.py: images a second of a training step, in every arithmetic and memory format, and the device's peak.

Steps see images that lie on the device already, but for the released style, which copies each batch from pinned memory
and reads the loss after each step, as the released scripts do. Their loaders are left out, in their favour.
"""

from __future__ import annotations

import functools
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from gpu_record import MODELS, Record, Scope, reason
from veilray.evaluation.benchmark.peak import measured_peak
from veilray.evaluation.benchmark.workload import training_operations
from veilray.models.build import build_model
from veilray.training.average import WeightAverage
from veilray.training.batch import Batch, TrainingParts
from veilray.training.config import RunConfig
from veilray.training.launch import autocast, laid_out, memory_format
from veilray.training.objectives import SupervisedObjective
from veilray.training.setup import Setup
from veilray.training.state import TrainingState
from veilray.training.step import Signals, Stepper
from veilray.training.timing import PartClock


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to take training steps."""

    name: str
    precision: Literal["fp32", "fp16", "bf16"]
    layout: Literal["contiguous", "channels_last"] = "channels_last"
    tf32: bool = True
    """Whether convolutions in fp32 may round to TF32, as torch lets them by default."""
    style: Literal["veilray", "graph", "released", "released-ddp"] = "veilray"
    compile: bool = False
    search: bool = False
    """Whether cuDNN tries its algorithms out first."""


# Those that a target is about come first, and what takes long to compile late, in case the time runs out.
WAYS = (
    Way(name="bf16 channels-last", precision="bf16"),
    Way(name="released DDP+AMP style", precision="fp16", layout="contiguous", style="released-ddp"),
    Way(name="bf16 channels-last graphed", precision="bf16", style="graph"),
    Way(name="bf16 channels-last cudnn.benchmark", precision="bf16", search=True),
    Way(name="bf16 channels-last compiled", precision="bf16", compile=True),
    Way(name="released fp32 style", precision="fp32", layout="contiguous", style="released"),
    Way(name="fp16 channels-last", precision="fp16"),
    Way(name="fp32 (TF32) channels-last", precision="fp32"),
    Way(name="bf16 contiguous", precision="bf16", layout="contiguous"),
    Way(name="fp32 (TF32) contiguous", precision="fp32", layout="contiguous"),
    Way(name="fp32 contiguous", precision="fp32", layout="contiguous", tf32=False),
    Way(name="bf16 channels-last compiled graphed", precision="bf16", style="graph", compile=True),
)

Step = Callable[[], Any]


def measure(record: Record, scope: Scope, device: torch.device) -> None:
    """The peaks, then every way for both networks, each written to the record as it is done."""
    for precision, tf32 in (("bf16", True), ("fp16", True), ("fp32", True), ("fp32", False)):
        _let_tf32(tf32)
        config = _config("unet", Way(name="", precision=precision), scope)  # type: ignore[arg-type]
        record.put(measured_peak(device, config), "peak_flop_per_s", _arithmetic(precision, tf32))
    for way in WAYS:
        for model in MODELS:
            try:
                figures = _measured(model, way, scope, device)
                peak = record.get("peak_flop_per_s", _arithmetic(way.precision, way.tf32))
                figures["share_of_peak"] = figures["flop_per_s"] / peak
            except Exception as error:
                figures = {"status": "not measured", "reason": reason(error)}
            record.put(figures, "throughput", model, way.name)
            _clean(device)


class _NotHereError(Exception):
    """A way that this device or this scope does not have."""


def _measured(model: str, way: Way, scope: Scope, device: torch.device) -> dict[str, Any]:
    if way.compile and not scope.compile:
        raise _NotHereError("torch.compile is left out of a quick run")
    if way.style == "graph" and device.type != "cuda":
        raise _NotHereError("CUDA graphs need CUDA")
    _let_tf32(way.tf32)
    torch.backends.cudnn.benchmark = way.search
    config = _config(model, way, scope)
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    step = STYLES[way.style](config, scope, device)
    step()
    _wait_for(device)
    first = time.perf_counter() - began
    for _ in range(scope.chunk - 1):
        step()
    seconds = timed(step, device, scope)
    median = statistics.median(seconds)
    operations = scope.batch * _operations(model, scope)
    tenths = statistics.quantiles(seconds, n=10)
    return {
        "status": "measured",
        "ms_per_step": 1000 * median,
        "ms_per_step_10_90_percent": [1000 * tenths[0], 1000 * tenths[-1]],
        "images_per_s": scope.batch / median,
        "flop_per_s": operations / median,
        "batch": scope.batch,
        "steps": len(seconds),
        "first_step_s": first,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def timed(step: Step, device: torch.device, scope: Scope, *, at_least: float | None = None) -> list[float]:
    """Seconds of each step, for as long as the scope says, or `at_least`: by events in the GPU's stream on CUDA."""
    at_least = scope.seconds if at_least is None else at_least
    seconds: list[float] = []
    while len(seconds) < 2 * scope.chunk or sum(seconds) < at_least:
        if device.type == "cuda":
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(scope.chunk + 1)]
            marks[0].record()
            for mark in marks[1:]:
                step()
                mark.record()
            torch.cuda.synchronize(device)
            seconds += [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(marks)]
        else:
            for _ in range(scope.chunk):
                began = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - began)
    return seconds


def training_step(config: RunConfig, setup: Setup, device: torch.device, *, batch: int, size: int) -> Step:
    """The step of `veilray train`, on images that lie on the device."""
    model = setup.prepare(build_model(config.model).to(device))
    model.to(memory_format=memory_format(config.launch))
    state = TrainingState(model, config.train, device=device, scale_loss=config.launch.precision == "fp16")
    stepper = Stepper(state, config, setup, PartClock(device))
    noisy, clean = _images(batch, size, device)
    known = torch.zeros((batch, 2), device=device)
    part = Batch(rows=torch.arange(batch).numpy(), noisy=noisy, originals=clean, known=known)
    parts = TrainingParts(images=batch * setup.group.world_size, parts=[part])

    def step() -> None:
        stepper.take(parts, rate=1e-4, signals=Signals())
        state.counters.step += 1

    return step


def _veilray(config: RunConfig, scope: Scope, device: torch.device) -> Step:
    return training_step(config, Setup(), device, batch=scope.batch, size=scope.size)


def _graph(config: RunConfig, scope: Scope, device: torch.device) -> Step:
    """The same arithmetic as one CUDA graph: forward, backward, clipping, AdamW, moving average."""
    model = build_model(config.model).to(device).train()
    model.to(memory_format=memory_format(config.launch))
    objective = SupervisedObjective(model, loss="l1", deep_supervision=False)
    if config.launch.compile:
        objective.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=True)
    average = WeightAverage(model, decay=config.train.ema_decay)
    noisy, clean = (laid_out(images, config.launch) for images in _images(scope.batch, scope.size, device))

    def step() -> None:
        # Casts must be part of the graph, not remembered from outside of it.
        with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
            loss = objective(noisy, clean).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model, step=1000)

    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream(device).wait_stream(aside)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _released(config: RunConfig, scope: Scope, device: torch.device) -> Step:
    """Eager fp32, NCHW, Adam as it comes: the released notebooks."""
    model = build_model(config.model).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    noisy, clean = _pinned(scope, device)

    def step() -> float:
        here, target = noisy.to(device), clean.to(device)
        optimizer.zero_grad()
        loss = torch.nn.functional.l1_loss(model(here), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _released_ddp(config: RunConfig, scope: Scope, device: torch.device) -> Step:
    """DistributedDataParallel as it comes, fp16 autocast, gradient scaling, pinned memory: one rank of the script."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    block = config.model.model_copy(update={"block": "conv-norm-relu-conv-norm-relu"})
    model = torch.nn.parallel.DistributedDataParallel(
        build_model(block).to(device),
        device_ids=[device.index or 0] if device.type == "cuda" else None,
        find_unused_parameters=block.name == "unetpp",  # whose other heads the released loss does not see
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type)
    noisy, clean = _pinned(scope, device)

    def step() -> float:
        here, target = noisy.to(device, non_blocking=True), clean.to(device, non_blocking=True)
        optimizer.zero_grad()
        with autocast(config.launch, device):
            loss = torch.nn.functional.l1_loss(model(here), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step


@functools.cache
def _operations(model: str, scope: Scope) -> float:
    """Operations for each image, which hang on no way to compute them."""
    return training_operations(_config(model, WAYS[0], scope), size=(scope.size, scope.size))


STYLES: dict[str, Callable[[RunConfig, Scope, torch.device], Step]] = {
    "veilray": _veilray,
    "graph": _graph,
    "released": _released,
    "released-ddp": _released_ddp,
}


def _config(model: str, way: Way, scope: Scope) -> RunConfig:
    ours = way.style in ("veilray", "graph")
    return RunConfig.model_validate(
        {
            "model": {"name": model, "width": scope.width, "residual": ours},
            "train": {"batch_size": scope.batch, "optimizer": "adamw", "weight_decay": 1e-4},
            "launch": {"precision": way.precision, "layout": way.layout, "compile": way.compile},
        }
    )


def _images(batch: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(batch, 1, size, size, generator=generator)
    noisy = (clean + 0.1 + 0.2 * torch.randn(clean.shape, generator=generator)).clamp(0.0, 1.0)
    return noisy.to(device), clean.to(device)


def _pinned(scope: Scope, device: torch.device) -> tuple[Tensor, Tensor]:
    noisy, clean = _images(scope.batch, scope.size, torch.device("cpu"))
    return (noisy.pin_memory(), clean.pin_memory()) if device.type == "cuda" else (noisy, clean)


def _arithmetic(precision: str, tf32: bool) -> str:
    return precision if precision != "fp32" else "fp32 (TF32)" if tf32 else "fp32"


def _let_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def _clean(device: torch.device) -> None:
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
