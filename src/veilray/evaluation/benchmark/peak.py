"""How much of a device's arithmetic a training uses: operations of a step, counted, and the device's peak, measured."""

from __future__ import annotations

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from veilray.models.build import build_model
from veilray.training.config import RunConfig
from veilray.training.launch import autocast, laid_out
from veilray.training.objectives import SupervisedObjective

_FIRST_SIDE, _LAST_SIDE = 256, 16_384
_LONG_ENOUGH_S = 0.1
_REPEATS = 5
_COUNTED_IMAGES = 2


def training_operations(config: RunConfig, *, size: tuple[int, int]) -> float:
    """Floating-point operations of a training step for each image of `size` (H, W): forward and backward pass.

    A multiply-add counts as two. Convolutions and matrix products are counted, as is usual for a share of the peak;
    normalisation, activations, loss and optimiser, which move bytes rather than multiply, are not.
    """
    with torch.device("meta"):  # shapes alone: nothing is computed, and no random numbers are drawn
        model = build_model(config.model)
        images = torch.empty(_COUNTED_IMAGES, config.model.channels_in, *size)
    objective = SupervisedObjective(model, loss=config.train.loss, deep_supervision=config.model.deep_supervision)
    with FlopCounterMode(display=False) as counter:
        objective(laid_out(images, config.launch), images).mean().backward()
    return float(counter.get_total_flops()) / _COUNTED_IMAGES


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
