"""Which set a patient or an image belongs to, decided by a keyed hash of its id and by nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from veilray.errors import UsageError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
"""The sets, in the order of their codes 0, 1, 2."""

SplitCodes = npt.NDArray[np.int8]

# The published protocol cuts 14,999 images into 7,499, 4,949 and the remaining 2,551.
PAPER_TRAIN, PAPER_VALIDATION = 0.50, 0.33


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the patients in each set, in per cent; they add up to 100."""

    train: float = 80.0
    validation: float = 10.0
    test: float = 10.0

    def __post_init__(self) -> None:
        parts = (self.train, self.validation, self.test)
        if not all(0.0 <= part <= 100.0 for part in parts) or abs(sum(parts) - 100.0) > 1e-6:
            raise UsageError(f"shares {self}: write three percentages that add up to 100, for example 80/10/10")

    def __str__(self) -> str:
        return f"{self.train:g}/{self.validation:g}/{self.test:g}"


def parse_shares(text: str) -> Shares:
    """Shares from `TRAIN/VALIDATION/TEST` in per cent, such as `80/10/10`; UsageError for anything else."""
    try:
        train, validation, test = (float(part) for part in text.split("/"))
    except ValueError:
        message = f"shares {text!r}: write three percentages that add up to 100, for example 80/10/10"
        raise UsageError(message) from None
    return Shares(train=train, validation=validation, test=test)


def assign(patient_id: str, *, seed: int, shares: Shares) -> Split:
    """The set of a patient: a keyed hash of the id, uniform in [0, 1), cut at the shares.

    Only the id, the seed and the shares count, so adding images or patients never moves anyone.
    Raises UsageError where the seed does not fit 64 bits.
    """
    point = 100.0 * _uniform(patient_id, seed=seed, purpose=b"veilray patient")
    if point < shares.train:
        return "train"
    return "validation" if point < shares.train + shares.validation else "test"


def image_split(image_ids: Iterable[str], *, seed: int) -> SplitCodes:
    """The published split of images, 50/33/17 %, whoever they show: codes into SPLITS, (N,), int8.

    Images are ordered by a keyed hash of their ids, so the order in which they are given does not count. Patients with
    several images end up in several sets; `shared_patients` counts them.
    """
    points = np.array([_uniform(name, seed=seed, purpose=b"veilray image") for name in image_ids], dtype=np.float64)
    n_train, n_validation = int(PAPER_TRAIN * len(points)), int(PAPER_VALIDATION * len(points))
    codes = np.full(len(points), SPLITS.index("test"), dtype=np.int8)
    order = np.argsort(points, kind="stable")
    codes[order[:n_train]] = SPLITS.index("train")
    codes[order[n_train : n_train + n_validation]] = SPLITS.index("validation")
    return codes


def shared_patients(patient_ids: Iterable[str], codes: Iterable[int]) -> int:
    """How many patients have images in more than one set; `codes` go with `patient_ids`, one an image."""
    sets: dict[str, int] = {}
    for patient, code in zip(patient_ids, codes, strict=True):
        sets[patient] = sets.get(patient, 0) | 1 << int(code)
    return sum(bits.bit_count() > 1 for bits in sets.values())


def _uniform(name: str, *, seed: int, purpose: bytes) -> float:
    if not 0 <= seed < 2**64:
        raise UsageError(f"split seed {seed}: it must lie between 0 and 2^64 - 1")
    digest = hashlib.blake2b(
        name.encode("utf-8", "surrogatepass"), digest_size=8, key=seed.to_bytes(8, "big"), person=purpose
    )
    # 53 bits, so that the quotient is exact and never rounds up to 1.
    return (int.from_bytes(digest.digest(), "big") >> 11) / 2**53
