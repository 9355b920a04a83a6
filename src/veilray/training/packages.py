"""Versions of what can change the results of a training and of its scores."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import torch

import veilray


def _installed(package: str) -> str:
    """The version of a package, without importing it; `(none)` where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(none)"


PACKAGES = {
    "veilray": veilray.__version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
    **{package: _installed(package) for package in ("scipy", "safetensors", "pydantic")},
}
"""By the names of packages, their versions here."""
