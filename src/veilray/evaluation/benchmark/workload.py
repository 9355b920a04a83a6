"""What a training asks of a machine, counted from the network without running it: arithmetic, memory, communication."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from veilray.models.build import build_model
from veilray.models.config import ModelConfig

FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One training step of a network, by the image."""

    name: str
    """What the network is called in tables."""
    gradient_bytes: float
    """Bytes of all gradients in fp32: 4 for each parameter. A data-parallel step exchanges them once."""
    flop_per_image: float
    """Floating-point operations of forward and backward pass; a multiplication and an addition are two."""
    backward_flop: float
    """Those of the backward pass alone, behind which gradients can be exchanged."""
    activation_bytes: float
    """Bytes of all layers' outputs in fp32 of one image: what the forward pass writes to memory."""
    batch_norms: int = 0
    """Layers that normalise over the batch: over ranks, each has to exchange statistics forward and backward."""

    @property
    def backward_share(self) -> float:
        """Share of the backward pass in the arithmetic, about two thirds."""
        return self.backward_flop / self.flop_per_image

    @property
    def bytes_per_flop(self) -> float:
        """Gradient bytes for each operation on one image: the larger, the sooner a network stops scaling."""
        return self.gradient_bytes / self.flop_per_image


def count_workload(model: ModelConfig, *, size: int) -> Workload:
    """Count a network's step on images of `size` x `size` pixels, on torch's meta device: no data, no arithmetic.

    Convolutions and matrix products are counted; normalisation, activation and pooling, a few per cent, are not.
    """
    with torch.device("meta"):
        network = build_model(model)
        images = torch.empty(1, model.channels_in, size, size)
    written = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal written
        written += output.numel()

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        output = network(images)
        forward = counter.get_total_flops()
        output.mean().backward()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Workload(
        name=f"{'U-Net++' if model.name == 'unetpp' else 'U-Net'} {model.width}",
        gradient_bytes=FLOAT32_BYTES * parameters,
        flop_per_image=counter.get_total_flops(),
        backward_flop=counter.get_total_flops() - forward,
        activation_bytes=FLOAT32_BYTES * written,
        batch_norms=sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()),
    )
