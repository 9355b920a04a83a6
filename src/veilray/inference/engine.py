"""The fast form of a network: batch normalisation folded away, channels last, bf16 where the hardware multiplies it."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from veilray.errors import UsageError
from veilray.models.build import DenoisingNetwork
from veilray.models.unet import UNet
from veilray.models.unetpp import UNetPlusPlus
from veilray.parallel.devices import multiplies_bf16

Precision = Literal["auto", "fp32", "bf16"]


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic of a name: `auto` takes bf16 where the device multiplies it natively, fp32 elsewhere.

    Raises UsageError for an unknown name.
    """
    match name:
        case "auto":
            return torch.bfloat16 if multiplies_bf16(device) else torch.float32
        case "fp32":
            return torch.float32
        case "bf16":
            return torch.bfloat16
        case _:
            raise UsageError(f"unknown precision {name!r}: choose auto, fp32 or bf16")


def prepare(model: DenoisingNetwork, *, device: torch.device, dtype: torch.dtype) -> DenoisingNetwork:
    """A copy of `model` for inference on `device` that computes in `dtype`; `model` stays as it is.

    It takes and gives float32. Each batch normalisation is folded into the convolution before it; on a processor that
    multiplies `dtype`, so are ReLUs between convolutions of `dtype`, and weights are laid out once. Under bf16 the
    first block, the last 3x3 convolution, the heads and the residual addition stay in float32: their rounding is nearly
    all that bf16 costs (benchmarks/inference.py measures what is left). Networks other than U-Net and U-Net++ compute
    their inner convolutions alone in bf16, and those that have none (TNRD) nothing.
    """
    network = copy.deepcopy(model).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            _fold(module)
    network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dtype != torch.float32:
        _lower(network, dtype)
    if device.type == "cpu" and _has_packing() and (dtype == torch.float32 or multiplies_bf16(device)):
        _pack(network)
    return network


def _fold(block: nn.Sequential) -> None:
    for index, (convolution, norm) in enumerate(pairwise(list(block))):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            block[index] = fuse_conv_bn_eval(convolution, norm)
            block[index + 1] = nn.Identity()


def _has_packing() -> bool:
    """Whether torch has oneDNN, and the operations by which its compiler packs weights for it."""
    return torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_convolution_weight", "_convolution_pointwise")
    )


def _pack(network: nn.Module) -> None:
    """Put one layer in the place of each plain convolution and the ReLU that follows it."""
    for block in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        layers = [index for index, layer in enumerate(block) if not isinstance(layer, nn.Identity)]
        for index, after in pairwise(layers):
            layer = block[index]
            if not isinstance(layer, nn.Conv2d) or not isinstance(block[after], nn.ReLU):
                continue
            if layer.padding_mode == "zeros" and isinstance(layer.padding, tuple):
                block[index], block[after] = _PackedConvReLU(layer), nn.Identity()


class _PackedConvReLU(nn.Module):
    """ReLU of a convolution, its weights in oneDNN's own layout, into which they would else be brought at each call."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._bias = convolution.bias
        self._how = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(convolution.weight, *self._how)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._how, "relu", [], ""
        )
        return output


def _lower(network: DenoisingNetwork, dtype: torch.dtype) -> None:
    match network:
        case UNet():
            first, last, heads = network.encoder[0], network.decoder[0], [network.head]
            network.head = nn.Sequential(_Cast(torch.float32), network.head)
        case UNetPlusPlus():
            first, last = network.nodes["x0_0"], network.nodes[f"x0_{len(network.heads)}"]
            heads = list(network.heads)
            network.heads = nn.ModuleList(nn.Sequential(_Cast(torch.float32), head) for head in heads)
        case _:
            _lower_inner(network, dtype)
            return
    assert isinstance(first, nn.Sequential)
    assert isinstance(last, nn.Sequential)
    (*_, into_levels), (*_, at_end) = _convolutions(first), _convolutions(last)
    exact = {*(first[index] for index in _convolutions(first)), last[at_end], *heads}
    first[into_levels] = nn.Sequential(first[into_levels], _Cast(dtype))
    last[at_end] = nn.Sequential(_Cast(torch.float32), last[at_end])
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module not in exact:
            module.to(dtype)


def _convolutions(block: nn.Sequential) -> list[int]:
    return [index for index, layer in enumerate(block) if isinstance(layer, nn.Conv2d)]


def _lower_inner(network: nn.Module, dtype: torch.dtype) -> None:
    """Let every nn.Conv2d but the first and the last compute in `dtype`; between them values stay in float32."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    exact = {*convolutions[:1], *convolutions[-1:]}
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child not in exact:
                setattr(module, name, nn.Sequential(_Cast(dtype), child.to(dtype), _Cast(torch.float32)))


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)
