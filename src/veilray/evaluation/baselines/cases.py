"""Noisy images as the classical methods get them, and work on them spread over the cores."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from veilray.cohort.cohort import Cohort
from veilray.evaluation.baselines.cache import Key
from veilray.evaluation.baselines.methods import KnownNoise
from veilray.images.radiograph import FloatImage
from veilray.parallel.devices import describe_device
from veilray.parallel.workers import ordered_map
from veilray.training.data import TrainingImages
from veilray.training.sets import Rows

Item = TypeVar("Item")
Result = TypeVar("Result")

_CPU = torch.device("cpu")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One noisy image."""

    row: int
    noisy: FloatImage
    """(H, W), float32, about [0, 1]."""
    clean: FloatImage
    """(H, W), float32, [0, 1]."""
    noise: KnownNoise


def load_case(images: TrainingImages, row: int) -> Case:
    """An image of a held-out set with its one noise, the same that a network is scored on."""
    batch = images.held_out_batch(np.array([row]), _CPU)
    mean, std = (float(value) for value in batch.known[0])
    return Case(
        row=row,
        noisy=batch.noisy[0, 0].numpy(),
        clean=batch.clean[0, 0].numpy(),
        noise=KnownNoise(mean=mean, std=std, clip=images.noise.clip),
    )


def case_key(images: TrainingImages, row: int) -> Key:
    """What decides an image's pixels and noise, and the speed it is denoised at."""
    drawn = images.config.evaluate.noise_seed if isinstance(images.data, Cohort) else None
    noise = images.noise.model_dump(mode="json", exclude={"fresh"})
    image = {"cohort": images.data.digest, "image": images.image_id(row)}
    return {**image, "noise": noise, "seed": drawn, "machine": describe_device(_CPU)}


def tuning_rows(images: TrainingImages, count: int) -> Rows:
    """Up to `count` validation images, chosen by a keyed hash of their names: the same for every noise and method."""
    rows = images.sets["validation"]
    order = sorted(rows.tolist(), key=lambda row: _hash(images.image_id(row)))
    return np.array(sorted(order[:count]), dtype=np.int64)


def decibels(estimate: FloatImage, clean: FloatImage) -> float:
    """PSNR of an estimate in [0, 1], peak 1."""
    error = float(np.mean((estimate.astype(np.float64) - clean.astype(np.float64)) ** 2))
    return -10.0 * math.log10(max(error, 1e-12))


def spread(function: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Generator[Result, None, None]:
    """`ordered_map` with one thread a worker, so that what a worker measures is the time of one core."""
    with _single_threads():
        yield from ordered_map(function, items, workers=workers)


@contextmanager
def _single_threads() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # read by the libraries of a worker when it is spawned
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), key=b"veilray tuning of classical methods").digest()
