"""What this machine cannot run of a plan, and its peak of arithmetic, measured once for each precision."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from veilray.evaluation.benchmark.peak import measured_peak
from veilray.evaluation.benchmark.plan import SINGLE, PlannedRun
from veilray.files import read_json, write_json
from veilray.parallel.devices import describe_device, multiplies_bf16
from veilray.parallel.workers import available_cores

_PEAKS = "peaks.json"


def impossible(planned: PlannedRun, device: torch.device) -> str:
    """Why a run cannot be done on this machine; empty where it can."""
    launch, devices = planned.config.launch, planned.devices
    batch = planned.config.train.batch_size
    if planned.levels["setup"] != SINGLE:
        if launch.setup == "dp" and device.type != "cuda":
            return f"nn.DataParallel spreads batches over GPUs; the device is {describe_device(device)}"
        if device.type == "cuda" and torch.cuda.device_count() < devices and not launch.share_device:
            return f"it needs {devices} GPUs; this machine has {torch.cuda.device_count()}"
        if device.type == "mps":
            return "there is one Apple GPU, and no backend that exchanges gradients on it"
        if device.type == "cpu" and available_cores() < devices:
            return f"it needs a core for each of {devices} processes; this process may use {available_cores()}"
        if batch % devices:
            return f"{batch} images in a step do not divide evenly among {devices} devices"
    if launch.precision != "fp32" and not _native(launch.precision, device):
        return f"this processor does not multiply {launch.precision}; emulated, it would be far slower than fp32"
    if launch.compile and launch.setup == "dp":
        return "torch.compile and nn.DataParallel do not work together"
    if launch.compile and not _compiles(device):
        return "torch.compile finds no compiler: on a CPU it needs a C++ compiler, on a GPU Triton"
    return ""


def peak_of(planned: PlannedRun, device: torch.device, *, threads: int, folder: Path) -> float:
    """Measured operations a second of a matrix product on all devices of a run, kept in `peaks.json` of a benchmark.

    On a CPU with as many `threads` as all its processes had; GPUs add up.
    """
    path = folder / _PEAKS
    peaks = read_json(path) if path.is_file() else {}
    name = describe_device(device).removesuffix(f", {torch.get_num_threads()} threads").removesuffix(", 1 thread")
    key = f"{name}, {f'{threads} threads, ' if device.type == 'cpu' else ''}{planned.config.launch.precision}"
    if key not in peaks:
        with threads_set(threads):
            peaks[key] = measured_peak(device, planned.config)
        write_json(path, peaks)
    return float(peaks[key]) * (planned.devices if device.type == "cuda" else 1)


def load_per_core() -> float | None:
    """Processes that wanted to run over the last minute, for each core; None where nobody counts them."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):
        return None


@contextlib.contextmanager
def threads_set(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _native(precision: str, device: torch.device) -> bool:
    if precision == "bf16":
        return multiplies_bf16(device)
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_fp16") or capabilities.get("amx_fp16"))


def _compiles(device: torch.device) -> bool:
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++"))
