"""Named tensors on disk as safetensors: written whole or not at all, read without executing anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from veilray.errors import CutShortError, RunError
from veilray.files import replacing


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write tensors by name, and a header of texts; whole or not at all. VeilrayError where the disk is full."""
    with replacing(path) as part:
        try:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, dict(header))
        except SafetensorError as error:
            # The library tells of a full disk in words of its own.
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]), str(error), str(path)) if number else error from None


def read_tensors(path: Path, *, format: str, schema_version: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors, on the CPU. RunError for a foreign file, CutShortError for one that is not whole."""
    if not path.is_file():
        raise CutShortError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CutShortError(f"{path} is not a whole safetensors file ({error}): it was cut short, or is none") from None
    if header.get("format") != format:
        raise RunError(f"{path} is not a {format} file of Veilray's")
    if header.get("schema_version") != schema_version:
        raise RunError(f"{path} has schema version {header.get('schema_version')}; this Veilray reads {schema_version}")
    return header, tensors
