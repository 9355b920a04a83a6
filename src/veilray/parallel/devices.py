"""Devices: which one to take, what it is called, and how its memory is allocated."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veilray.errors import UsageError

if TYPE_CHECKING:
    import torch


# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def use_huge_pages() -> None:
    """Let torch allocate CPU memory in huge pages: 20-30 % faster training. Works only before torch's first tensor."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees: a network on a processor is faster for it.

    By default glibc hands large blocks back to the system, which has to clear them anew for the next layer. For
    processes that do little else: they hold on to the most that they ever used, and to what lies scattered between.
    Blocks above 64 MiB in threads but the main one still go back. Elsewhere than under glibc nothing changes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_MMAP_MAX, 0)  # a block of its own would go back at once
            mallopt(_TRIM_THRESHOLD, -1)


def pick_device(name: str) -> torch.device:
    """The device of a name: `auto` takes CUDA, then MPS, then the CPU. UsageError where it is not there."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if name not in available:
        raise UsageError(f"unknown device {name!r}: choose auto, cpu, cuda or mps")
    if not available[name]:
        raise UsageError(f"this machine has no {name} device that torch can use; choose device = 'auto' or 'cpu'")
    return torch.device(name)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively; where it does not, emulation is far slower than fp32."""
    import torch

    match device.type:
        case "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        case "cpu":
            capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
            return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        case _:
            return False


def favours_channels_last(device: torch.device, precision: str) -> bool:
    """Whether convolutions of this precision run faster on images whose channels lie together in memory.

    On a CPU in fp32 they do with AVX-512, and not with AVX2 (benchmarks/training_step.py).
    """
    import torch

    return device.type != "cpu" or precision != "fp32" or bool(torch.cpu.get_capabilities().get("avx512_f"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had: on the host, or as torch says it of a device."""
    # torch's allocator on the CPU raises a plain RuntimeError.
    kind, text = type(error).__name__, str(error)
    return isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "DefaultCPUAllocator: " in text


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory in use at once so far: tensors on a GPU, or this process's resident memory; 0 where nobody counts."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def describe_device(device: torch.device) -> str:
    """What the hardware is called, for records and reports."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.processor() or platform.machine()})"
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
