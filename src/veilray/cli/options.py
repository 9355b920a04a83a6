"""Options that several commands share."""

from __future__ import annotations

import typer

BACKBONE = typer.Option(
    "--lpips-backbone",
    envvar="VEILRAY_LPIPS_BACKBONE",
    help="AlexNet's convolutions for LPIPS, .safetensors or torchvision's .pth.",
    show_default=False,
)
