"""Networks that the audit trains itself, one for each way to protect images: what a protection is worth once undone.

All are alike and get the same steps, so that one protection is not favoured by more training than another. They see
the patients of the cohort's training set alone, and their fidelity counts on those of its test set; a cohort without
such sets has one fifth of its patients held out.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilray.errors import DataError, RunError
from veilray.images.radiograph import FloatImage
from veilray.inference.denoiser import Denoiser
from veilray.models.build import DenoisingNetwork, build_model
from veilray.models.config import ModelConfig
from veilray.models.weights import load_model, save_weights
from veilray.privacy.catalogue import TRAINED
from veilray.privacy.data import AuditData, Progress, Rows, Variant
from veilray.privacy.folds import patient_folds
from veilray.privacy.pairs import patient_codes
from veilray.privacy.scoring import as_batch
from veilray.privacy.variants import denoised_variant
from veilray.training.config import TrainConfig
from veilray.training.schedule import learning_rate

NETWORK = ModelConfig(name="nafnet", width=32, depth=2, fold=4, residual=False)
STEPS = 600
"""Optimiser steps of each network."""
IMAGES = 4
"""Images of a step, each of which gives two crops."""
CROP = 64
"""Side of a crop in pixels, or less where the images are smaller."""

_CROPS = 2
_SCHEDULE = TrainConfig(learning_rate=4e-3, warmup_steps=25)
_SEED = 1
_SAID_EVERY = 10


def dealt(data: AuditData) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows to train on and rows to judge by, of different patients. DataError where there are too few patients."""
    sets = np.array(data.sets)
    train, test = (np.flatnonzero(sets == name) for name in ("train", "test"))
    if len(train) and len(test):
        return train, test
    fold_of = patient_folds(patient_codes(data.patient_ids), seed=_SEED)
    return np.flatnonzero(fold_of != 0), np.flatnonzero(fold_of == 0)


def restored_variant(variant: Variant, *, data: AuditData, folder: Path, steps: int = STEPS) -> Variant:
    """What a network trained for a variant makes of its first draw; its weights and images are kept in `folder`.

    It is trained when the first image is asked for, or by `prepare`. DataError where there are too few patients.
    """
    train, test = dealt(data)
    available = variant.available(data)
    train, test = np.intersect1d(train, available), np.intersect1d(test, available)
    if not len(train) or not len(test):
        raise DataError(f"{variant.name} has no images of training and of test patients both")
    restorer = _Restorer(variant, data, train, folder=folder, steps=steps)
    restored = denoised_variant(variant, restorer, folder=folder, data=data, digest=restorer.digest)
    return dataclasses.replace(
        restored,
        name=f"{variant.name}, restored",
        restorer=TRAINED,
        judged=tuple(test.tolist()),
        prepare=restorer.prepare,
    )


class _Restorer:
    """A network trained for one variant, when it is first needed."""

    def __init__(
        self, variant: Variant, data: AuditData, rows: npt.NDArray[np.int64], *, folder: Path, steps: int
    ) -> None:
        self._variant, self._data, self._rows, self._steps = variant, data, rows, steps
        told = [variant.digest, rows.tolist(), NETWORK.model_dump_json(), steps, IMAGES, CROP, _SCHEDULE, _SEED]
        self.digest = hashlib.sha256(repr(told).encode()).hexdigest()
        self._path = folder / f"restorer-{self.digest[:16]}.safetensors"
        self._denoiser: Denoiser | None = None

    def prepare(self, progress: Progress) -> None:
        """Read the weights of an earlier run, or train."""
        if self._denoiser is not None:
            return
        model = self._kept()
        if model is None:
            model = train_restorer(self._variant, self._data, self._rows, steps=self._steps, progress=progress)
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            save_weights(self._path, model)
            self._path.chmod(0o600)
        self._denoiser = Denoiser(model, noise=None, device="cpu")

    def several(self, pixels: FloatImage, *, mean: float | None = None) -> FloatImage:
        """(N, H, W) -> (N, H, W), [0, 1]."""
        self.prepare(lambda _: None)
        assert self._denoiser is not None
        return self._denoiser.several(pixels, mean=mean)

    def _kept(self) -> DenoisingNetwork | None:
        try:
            return load_model(self._path)
        except RunError:  # none, or one that a kill cut short
            return None


def train_restorer(
    variant: Variant, data: AuditData, rows: Rows, *, steps: int, progress: Progress
) -> DenoisingNetwork:
    """A network trained to give back the originals of a variant's images, from those of `rows` alone.

    Noise is drawn anew for every step where the variant can be drawn again, and never as the attacked images have it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = build_model(NETWORK)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    for step, (given, wanted) in enumerate(_batches(variant, data, rows, steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(_SCHEDULE, step=step, total_steps=steps)
        optimizer.zero_grad(set_to_none=True)
        loss = (model(given) - wanted).abs().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % _SAID_EVERY == 0:
            progress(f"training a network for it, step {step + 1} of {steps}")
    return model.eval()


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Where a crop lies, and whether it is mirrored."""

    image: int
    top: int
    left: int
    side: int
    mirrored: bool

    def of(self, images: FloatImage) -> FloatImage:
        crop: FloatImage = images[self.image, self.top : self.top + self.side, self.left : self.left + self.side]
        return crop[:, ::-1] if self.mirrored else crop


def _batches(variant: Variant, data: AuditData, rows: Rows, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Crops of the variant's images and of their originals, (N, 1, side, side) each."""
    generator = np.random.default_rng(_SEED)
    for step in range(steps):
        chosen = generator.choice(rows, size=min(IMAGES, len(rows)), replace=False)
        images, originals = variant.draw(chosen, step + 1), data.clean(chosen)
        side = min(CROP, *images.shape[1:])
        cuts = [
            _Cut(
                image=place,
                top=int(generator.integers(images.shape[1] - side + 1)),
                left=int(generator.integers(images.shape[2] - side + 1)),
                side=side,
                mirrored=bool(generator.integers(2)),
            )
            for place in range(len(chosen))
            for _ in range(_CROPS)
        ]
        given, wanted = (as_batch(np.stack([cut.of(some) for cut in cuts])) for some in (images, originals))
        yield given, wanted
