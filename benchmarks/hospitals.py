"""Whose radiographs are whose: what the list beside the real radiographs knows of a hospital's patients."""

from __future__ import annotations

import csv
from pathlib import Path


def write_patients(data: Path, folder: str, out: Path) -> Path:
    """A file for `import --patients`, at `out`, of the radiographs in `data`/`folder`, by `data`/index.csv."""
    with (data / "index.csv").open(newline="", encoding="utf-8") as stream:
        lines = [line for line in csv.DictReader(stream) if line["file"].startswith(f"{folder}/")]
    out.parent.mkdir(parents=True, exist_ok=True)
    known = "".join(f"{Path(line['file']).stem},{line['patient_id']}\n" for line in lines)
    out.write_text(f"image_id,patient_id\n{known}", encoding="utf-8")
    return out
