"""Batches for training, validation and test: images from a cohort or a release, with the noise each one gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilray.cohort.cohort import Cohort
from veilray.cohort.open import open_data
from veilray.cohort.release import Release
from veilray.cohort.split import SPLITS, image_split, shared_patients
from veilray.errors import CohortError, UsageError
from veilray.obfuscation.config import NoiseConfig
from veilray.obfuscation.noise import apply_draws, keyed_draw
from veilray.training.config import RunConfig

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images of one step: (N, 1, H, W), float32; `clean` in [0, 1], `noisy` too where the noise is clamped."""

    rows: Rows
    noisy: Tensor
    clean: Tensor


class TrainingImages:
    """The images of a cohort, or of a release with pairs, in their three sets.

    From a cohort the noise is drawn while training; from a release it is what was released. All that decides a batch
    is (seed, epoch, image), so batches can be made in any order and anywhere.
    """

    def __init__(self, data: Cohort | Release, config: RunConfig) -> None:
        self.data = data
        self.noise = _noise_of(data, config)
        self.config = config.model_copy(update={"noise": self.noise})
        self.sets = _sets(data, config)

    @classmethod
    def open(cls, path: str | Path, config: RunConfig) -> TrainingImages:
        """Open and verify a cohort or release. Raises CohortError where it is damaged or cannot be trained on."""
        data = open_data(path)
        data.verify()
        return cls(data, config)

    def patients(self) -> dict[str, int]:
        """How many patients each set shows."""
        return {name: len({self.data.patient_id(int(row)) for row in rows}) for name, rows in self.sets.items()}

    def shared_patients(self) -> int:
        """How many patients have images in more than one set: 0 but for the paper's split."""
        rows = np.concatenate(list(self.sets.values()))
        codes = np.repeat(np.arange(len(self.sets)), [len(chosen) for chosen in self.sets.values()])
        return shared_patients((self.data.patient_id(int(row)) for row in rows), codes.tolist())

    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the training images; the last may be smaller."""
        return -(-len(self.sets["train"]) // self.config.train.batch_size)

    def training_batch(self, epoch: int, index: int, device: torch.device) -> Batch:
        """Batch `index` of an epoch, epochs counted from 0: shuffled by (seed, epoch)."""
        rows = self.sets["train"]
        order = _generator(self.config.seed, "order", epoch).permutation(len(rows))
        size = self.config.train.batch_size
        chosen = rows[order[index * size : (index + 1) * size]]
        return self._batch(chosen, device, seed=self.config.seed, epoch=epoch, flips=self.config.train.flips)

    def held_out_batches(self, name: str, device: torch.device, *, batch_size: int) -> Iterator[Batch]:
        """Every image of a set once, in the order of its rows, each with its one noise."""
        rows = self.sets[name]
        for start in range(0, len(rows), batch_size):
            yield self.held_out_batch(rows[start : start + batch_size], device)

    def held_out_batch(self, rows: Rows, device: torch.device) -> Batch:
        """Given images, with noise that is fixed once and for all and always drawn on the CPU."""
        batch = self._batch(rows, torch.device("cpu"), seed=self.config.evaluate.noise_seed, epoch=None)
        return Batch(rows=rows, noisy=batch.noisy.to(device), clean=batch.clean.to(device))

    def image_id(self, row: int) -> str:
        """Name of the image in a row."""
        return self.data.image_id(row)

    def _batch(self, rows: Rows, device: torch.device, *, seed: int, epoch: int | None, flips: bool = False) -> Batch:
        if isinstance(self.data, Release):
            clean, noisy = _tensor(self.data.gather_clean(rows), device), _tensor(self.data.gather_noisy(rows), device)
            if flips:
                mirrored = self._mirrored(rows, epoch or 0)
                clean, noisy = _flip(clean, mirrored), _flip(noisy, mirrored)
            return Batch(rows=rows, noisy=noisy, clean=clean)
        clean = _tensor(self.data.gather(rows), device)
        if flips:
            clean = _flip(clean, self._mirrored(rows, epoch or 0))
        # Held-out noise has a name of its own, which no epoch of the training can meet.
        purpose = self.noise if epoch is not None else self.noise.model_copy(update={"fresh": False})
        prefix = "" if epoch is not None else "held-out/"
        draws = [
            keyed_draw(purpose, seed=seed, epoch=epoch or 0, image_id=prefix + self.image_id(int(row))) for row in rows
        ]
        noisy = apply_draws(clean, draws, mean=self.noise.mean, clip=self.noise.clip)
        return Batch(rows=rows, noisy=noisy, clean=clean)

    def _mirrored(self, rows: Rows, epoch: int) -> list[bool]:
        seed = self.config.seed
        return [bool(_hash(f"{seed}/{epoch}/{self.image_id(int(row))}", b"mirror") & 1) for row in rows]


def _noise_of(data: Cohort | Release, config: RunConfig) -> NoiseConfig:
    if isinstance(data, Cohort):
        return config.noise
    if not data.pairs:
        raise UsageError(
            f"{data.path} holds no clean images: training on noisy images alone is not supported; "
            "ask for a release made with --pairs"
        )
    wanted = config.noise
    if "noise" in config.model_fields_set and (wanted.mean, wanted.std, wanted.clip) != (
        data.noise.mean,
        data.noise.std,
        data.noise.clip,
    ):
        raise UsageError(
            f"the configuration asks for noise mean {wanted.mean}, std {wanted.std}, clip {wanted.clip}, but the "
            f"release was made with mean {data.noise.mean}, std {data.noise.std}, clip {data.noise.clip}"
        )
    return data.noise


def _sets(data: Cohort | Release, config: RunConfig) -> dict[str, Rows]:
    if len(data.sizes) > 1:
        sizes = ", ".join(f"{height}x{width}" for height, width in data.sizes)
        raise CohortError(f"{data.path} holds images of several sizes ({sizes}); import them with --size to train")
    codes = image_split(data.image_ids, seed=config.split.seed) if config.split.rule == "paper" else data.split_codes
    sets: dict[str, Rows] = {name: np.flatnonzero(codes == code) for code, name in enumerate(SPLITS)}
    for name in ("train", "validation"):
        if not len(sets[name]):
            raise CohortError(f"{data.path} has no images in its {name} set; training needs some in both")
    return sets


def _tensor(pixels: npt.NDArray[np.float32], device: torch.device) -> Tensor:
    return torch.from_numpy(pixels).unsqueeze(1).to(device, non_blocking=True)


def _flip(images: Tensor, mirrored: list[bool]) -> Tensor:
    chosen = torch.tensor(mirrored, device=images.device).view(-1, 1, 1, 1)
    return torch.where(chosen, images.flip(-1), images)


def _generator(seed: int, purpose: str, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=_hash(f"{seed}/{epoch}", purpose.encode())))


def _hash(name: str, purpose: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16, person=purpose).digest(), "little")
