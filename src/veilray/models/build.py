"""From a configuration to a network."""

from __future__ import annotations

from veilray.models.attention_unet import AttentionUNet
from veilray.models.config import ModelConfig
from veilray.models.dncnn import DnCNN
from veilray.models.nafnet import NAFNet
from veilray.models.restormer import Restormer
from veilray.models.tnrd import TNRD
from veilray.models.unet import UNet
from veilray.models.unetpp import UNetPlusPlus

DenoisingNetwork = UNet | UNetPlusPlus | AttentionUNet | NAFNet | Restormer | DnCNN | TNRD


def build_model(config: ModelConfig) -> DenoisingNetwork:
    """A network with its initial weights, drawn from the global generator; seed it for a given draw.

    They are PyTorch's defaults but for TNRD, which begins as a mild smoothing, without drawing.
    """
    options = config.options()
    match config.name:
        case "unet":
            return UNet(**options)
        case "unetpp":
            return UNetPlusPlus(**options)
        case "attention_unet":
            return AttentionUNet(**options)
        case "nafnet":
            return NAFNet(**options)
        case "restormer":
            return Restormer(**options)
        case "dncnn":
            return DnCNN(**options)
        case "tnrd":
            return TNRD(**options)
