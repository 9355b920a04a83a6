"""How much arithmetic a device can do: the peak that a training's share is measured against."""

from __future__ import annotations

import time

import torch

from veilray.training.config import RunConfig
from veilray.training.launch import autocast

_FIRST_SIDE, _LAST_SIDE = 256, 16_384
_LONG_ENOUGH_S = 0.1
_REPEATS = 5


def measured_peak(device: torch.device, config: RunConfig) -> float:
    """Floating-point operations a second of a square matrix product in the arithmetic of a configuration.

    The side is doubled until one product takes a tenth of a second (or is 16,384), and the fastest of five counts. fp32
    multiplies as convolutions do here: in TF32 on GPUs where torch lets convolutions use it.
    """
    side = _FIRST_SIDE
    matmul = torch.backends.cuda.matmul
    # Not zeros or ones: a GPU that multiplies them draws less power, and clocks higher than it can with real data.
    generator = torch.Generator().manual_seed(0)
    before = matmul.allow_tf32
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        with torch.no_grad(), autocast(config.launch, device):
            while True:
                a, b = (torch.randn(side, side, generator=generator).to(device) for _ in range(2))
                if config.launch.precision != "fp32":
                    half = torch.float16 if config.launch.precision == "fp16" else torch.bfloat16
                    a, b = a.to(half), b.to(half)
                _timed(a, b)  # the first product also sets the library up
                seconds = min(_timed(a, b) for _ in range(_REPEATS))
                if seconds >= _LONG_ENOUGH_S or side >= _LAST_SIDE:
                    return 2.0 * side**3 / seconds
                side *= 2
    finally:
        matmul.allow_tf32 = before


def _timed(a: torch.Tensor, b: torch.Tensor) -> float:
    _wait_for(a.device)
    started = time.perf_counter()
    torch.mm(a, b)
    _wait_for(a.device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
