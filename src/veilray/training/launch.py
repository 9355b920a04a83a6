"""Where and in what arithmetic a training runs: what `auto` means, autocast and memory format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from veilray.errors import UsageError
from veilray.parallel.devices import favours_channels_last, multiplies_bf16
from veilray.training.config import PROBED, LaunchConfig, RunConfig


def resolved(config: RunConfig, device: torch.device) -> RunConfig:
    """The configuration with every `auto` of its launch replaced by what the device does best.

    Raises UsageError where the arithmetic is too coarse for the objective.
    """
    launch = config.launch
    precision = launch.precision
    probed = config.train.objective in PROBED
    if precision == "auto":
        precision = "bf16" if multiplies_bf16(device) and not probed else "fp32"
    if probed and precision != "fp32":
        raise UsageError(
            f"launch.precision = '{precision}' is too coarse for the differences that train.objective = "
            f"'{config.train.objective}' takes: set 'auto' or 'fp32'"
        )
    layout = launch.layout
    if layout == "auto":
        layout = "channels_last" if favours_channels_last(device, precision) else "contiguous"
    concrete = launch.model_copy(update={"device": device.type, "precision": precision, "layout": layout})
    return config.model_copy(update={"launch": concrete})


def autocast(launch: LaunchConfig, device: torch.device) -> torch.autocast:
    """The arithmetic of a forward pass: fp16 or bf16 in the layers that stand it, or fp32 throughout."""
    half = torch.float16 if launch.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=half, enabled=launch.precision != "fp32")


@contextmanager
def unrounded_fp32(config: RunConfig) -> Iterator[None]:
    """Keep GPUs from rounding fp32 to TF32, which torch lets convolutions do, while an objective takes differences.

    A probe moves the image by a hundredth of the noise; TF32 keeps 10 bits of a number, about as much as the move.
    For other objectives nothing changes. What was allowed before is allowed again at the end.
    """
    if config.train.objective not in PROBED:
        yield
        return
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    try:
        convolutions.allow_tf32 = products.allow_tf32 = False
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def run_network(network: nn.Module, inputs: Tensor, launch: LaunchConfig) -> Tensor:
    """The output of a forward pass in the launch's arithmetic and memory format, float32 at least."""
    with autocast(launch, inputs.device):
        output: Tensor = network(laid_out(inputs, launch))
    return output.to(torch.promote_types(output.dtype, torch.float32))


def laid_out(images: Tensor, launch: LaunchConfig) -> Tensor:
    """Images (N, 1, H, W) in the memory format of the launch."""
    return images.contiguous(memory_format=memory_format(launch))


def memory_format(launch: LaunchConfig) -> torch.memory_format:
    """torch's name of the layout."""
    return torch.channels_last if launch.layout == "channels_last" else torch.contiguous_format
