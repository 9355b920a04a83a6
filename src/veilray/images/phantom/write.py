"""A folder of phantoms, named as NIH ChestX-ray14 names its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from veilray.errors import UsageError
from veilray.images.phantom.render import chest_phantom
from veilray.images.radiograph import to_levels
from veilray.images.write import write_png


def write_phantoms(folder: str | Path, *, patients: int, follow_ups: int, seed: int, size: int = 256) -> list[Path]:
    """Write phantom radiographs as 8-bit greyscale PNG, named PPPPPPPP_FFF.png: patient from 1, follow-up from 0.

    Args:
        folder: made where it is missing; files of the same names are replaced.
        patients: how many patients.
        follow_ups: the most examinations of one patient; each has between 1 and this many, hanging on `seed`.
        seed: of the whole population; see `chest_phantom`.
        size: height and width in pixels.

    Returns:
        The files, in order of patient and follow-up.
    """
    if patients < 1 or follow_ups < 1:
        raise UsageError(f"phantoms need at least 1 patient and 1 follow-up, not {patients} and {follow_ups}")
    written = []
    for patient in range(1, patients + 1):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(patient,)))
        for follow_up in range(int(rng.integers(1, follow_ups, endpoint=True))):
            path = Path(folder) / f"{patient:08d}_{follow_up:03d}.png"
            pixels = chest_phantom(patient=patient, follow_up=follow_up, seed=seed, size=size)
            write_png(path, to_levels(pixels, np.uint8))
            written.append(path)
    return written
