"""From a configuration to a network."""

from __future__ import annotations

from veilray.models.config import ModelConfig
from veilray.models.nafnet import NAFNet
from veilray.models.unet import UNet
from veilray.models.unetpp import UNetPlusPlus

DenoisingNetwork = UNet | UNetPlusPlus | NAFNet


def build_model(config: ModelConfig) -> DenoisingNetwork:
    """A network with PyTorch's default initial weights, drawn from the global generator; seed it for a given draw."""
    match config.name:
        case "unet":
            return UNet(
                width=config.width,
                depth=config.depth,
                norm=config.norm,
                block=config.block,
                residual=config.residual,
            )
        case "nafnet":
            return NAFNet(
                width=config.width,
                depth=config.depth,
                residual=config.residual,
                inputs=config.inputs,
                fold=config.fold,
            )
        case "unetpp":
            return UNetPlusPlus(
                width=config.width,
                depth=config.depth,
                norm=config.norm,
                block=config.block,
                residual=config.residual,
                deep_supervision=config.deep_supervision,
            )
