"""Veilray: obfuscate chest radiographs, train denoisers on them, and measure what both really achieve."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from veilray.errors import VeilrayError
    from veilray.images.read import read_radiograph
    from veilray.inference.denoiser import Denoiser
    from veilray.metrics.psnr import psnr
    from veilray.metrics.ssim import ssim
    from veilray.models.unet import UNet
    from veilray.models.unetpp import UNetPlusPlus
    from veilray.obfuscation.mean_map import inverse_mean_map, mean_map
    from veilray.obfuscation.noise import add_gaussian

__version__ = "0.1.0"

__all__ = [
    "Denoiser",
    "UNet",
    "UNetPlusPlus",
    "VeilrayError",
    "__version__",
    "add_gaussian",
    "inverse_mean_map",
    "mean_map",
    "psnr",
    "read_radiograph",
    "ssim",
]

_HOME = {
    "Denoiser": "veilray.inference.denoiser",
    "UNet": "veilray.models.unet",
    "UNetPlusPlus": "veilray.models.unetpp",
    "VeilrayError": "veilray.errors",
    "add_gaussian": "veilray.obfuscation.noise",
    "inverse_mean_map": "veilray.obfuscation.mean_map",
    "mean_map": "veilray.obfuscation.mean_map",
    "psnr": "veilray.metrics.psnr",
    "read_radiograph": "veilray.images.read",
    "ssim": "veilray.metrics.ssim",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `veilray --help` and the reading of files do not wait for torch.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'veilray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
