"""What every test shares: where the real radiographs are, and one thread so that results do not depend on the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def _real(part: str) -> Path:
    root = os.environ.get("VEILRAY_REAL_DATA")
    if not root:
        pytest.skip("VEILRAY_REAL_DATA is not set: this test needs real radiographs")
    path = Path(root) / part
    if not path.exists():
        pytest.skip(f"VEILRAY_REAL_DATA holds no {part}")
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real radiographs: nih256, nih1024, hannover256, dicom."""
    return _real("data")


@pytest.fixture(scope="session")
def lpips_backbone() -> Path:
    """AlexNet's convolutions as safetensors."""
    return _real("weights/alexnet_features.safetensors")
