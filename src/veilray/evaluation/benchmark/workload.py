"""What a training asks of a machine, counted from the network without running it: arithmetic, memory, communication."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from veilray.models.build import build_model
from veilray.models.config import TITLES, ModelConfig
from veilray.training.config import RunConfig
from veilray.training.launch import laid_out
from veilray.training.objectives import SupervisedObjective

FLOAT32_BYTES = 4
_COUNTED_IMAGES = 2


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
    batch_norms: tuple[int, ...] = ()
    """Channels of each layer that normalises over the batch, which takes exchanges over ranks forward and backward."""

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
    with _counter() as counter:
        output = network(images)
        forward = counter.get_total_flops()
        output.mean().backward()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Workload(
        name=f"{TITLES[model.name]} {model.width}",
        gradient_bytes=FLOAT32_BYTES * parameters,
        flop_per_image=counter.get_total_flops(),
        backward_flop=counter.get_total_flops() - forward,
        activation_bytes=FLOAT32_BYTES * written,
        batch_norms=tuple(module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm2d)),
    )


def training_operations(config: RunConfig, *, size: tuple[int, int]) -> float:
    """Floating-point operations of a training step for each image of `size` (H, W): forward and backward pass.

    A multiply-add counts as two. Convolutions and matrix products are counted, as is usual for a share of the peak;
    normalisation, activations, loss and optimiser, which move bytes rather than multiply, are not.
    """
    with torch.device("meta"):  # shapes alone: nothing is computed, and no random numbers are drawn
        model = build_model(config.model)
        images = torch.empty(_COUNTED_IMAGES, config.model.channels_in, *size)
    objective = SupervisedObjective(model, loss=config.train.loss, deep_supervision=config.model.deep_supervision)
    with _counter() as counter:
        objective(laid_out(images, config.launch), images).mean().backward()
    return float(counter.get_total_flops()) / _COUNTED_IMAGES


def _counter() -> FlopCounterMode:
    # torch's own formula takes a grouped convolution's backward pass for a full one's (torch 2.13).
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward_flop}
    )


def _convolution_backward_flop(
    grad_out_shape: list[int],
    x_shape: list[int],
    w_shape: list[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: int,
    output_mask: list[bool],
    out_shape: object,
) -> int:
    """The gradients of input and of weights cost what the forward pass does, each."""
    places = x_shape if transposed else grad_out_shape
    return (output_mask[0] + output_mask[1]) * 2 * math.prod(places) * math.prod(w_shape[1:])
