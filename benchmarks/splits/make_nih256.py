"""Make nih256.csv: the fixed split of the NIH radiographs that every figure of this project is measured with.

    python benchmarks/splits/make_nih256.py FOLDER_OF_RADIOGRAPHS

The folder holds `nih256` (PATIENT_FOLLOWUP.png, 256 x 256) and `nih1024` (some of their originals). Patients are split
80/10/10 by the keyed hash that cohorts use, under a seed of its own. Every patient with an original in `nih1024` is in
test, so that figures at full size are test figures too. Patients who share identical pixels are split as one.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from veilray.cohort.split import Shares, assign

SEED = 256
OUT = Path(__file__).with_name("nih256.csv")


def main(root: Path) -> None:
    """Write the split and print how many images and patients each set holds."""
    small, large = (sorted((root / name).glob("*.png")) for name in ("nih256", "nih1024"))
    forced = {_patient(path) for path in large}
    leader = _leaders([*small, *large])
    members = defaultdict(set)
    for patient, first in leader.items():
        members[first].add(patient)
    sets = {
        patient: "test" if members[first] & forced else assign(first, seed=SEED, shares=Shares())
        for patient, first in leader.items()
    }
    images = sorted({path.stem for path in [*small, *large]})
    with OUT.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image_id", "split"])
        writer.writerows([image, sets[_patient(Path(image))]] for image in images)
    print("images  ", dict(Counter(sets[_patient(Path(image))] for image in images)))
    print("patients", dict(Counter(sets.values())), "of which forced into test:", len(forced))


def _patient(path: Path) -> str:
    return path.stem.split("_")[0]


def _leaders(paths: list[Path]) -> dict[str, str]:
    """For each patient the first patient, by name, of those linked to it through identical pixels."""
    leader = {_patient(path): _patient(path) for path in paths}
    owner: dict[str, str] = {}
    for path in paths:
        patient = _patient(path)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        key = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        first, second = sorted((leader[patient], leader[owner.setdefault(key, patient)]))
        leader = {name: first if now == second else now for name, now in leader.items()}
    return leader


if __name__ == "__main__":
    main(Path(sys.argv[1]))
