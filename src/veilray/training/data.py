"""Batches for training, validation and test: images from a cohort or a release, with the noise each one gets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from veilray.images.radiograph import FloatImage
from veilray.models.config import ModelConfig
from veilray.models.layers import with_noise_maps
from veilray.obfuscation.config import NoiseConfig
from veilray.obfuscation.noise import apply_draws, keyed_draw
from veilray.parallel.group import ALONE, Group, share
from veilray.training.config import RunConfig
from veilray.training.degradation import other_task
from veilray.training.draws import keyed, sign_fields
from veilray.training.objectives.choose import choose_objective, with_objective

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
SMALLEST = 11  # the window of SSIM
Gather = Callable[[Rows], FloatImage]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images of one step: (N, 1, H, W), float32; clean ones in [0, 1], `noisy` too where the noise is clamped."""

    rows: Rows
    noisy: Tensor
    known: Tensor
    """(N, 2), float32: mean and standard deviation of each image's noise."""
    originals: Tensor | None
    """The clean images; None where the data hold none."""
    field: Tensor | None = None
    """(N, 1, H, W), float32: what an objective that sees no clean image draws for each pixel; None for others."""
    weight: Tensor | None = None
    """(N,), float32: how much the probe of an image counts; 0 where there is none."""

    @property
    def clean(self) -> Tensor:
        """The clean images, (N, 1, H, W); CohortError where the data hold none."""
        if self.originals is None:
            raise CohortError("these data hold no clean images to compare with; evaluate where the originals are")
        return self.originals

    def network_input(self, config: ModelConfig) -> Tensor:
        """(N, C, H, W): the noisy images, with a constant map for each thing the network is told of their noise."""
        return with_noise_maps(self.noisy, self.known[:, : config.channels_in - 1])

    def arguments(self, config: ModelConfig) -> tuple[Tensor, ...]:
        """What the training's objective takes: network input and clean images, or what it makes do without them."""
        if self.field is None or self.weight is None:
            return self.network_input(config), self.clean
        return self.noisy, self.known, self.field, self.weight


@dataclass(frozen=True, kw_only=True)
class TrainingParts:
    """What one rank does of one optimiser step."""

    images: int
    """In the whole batch, over all parts and ranks."""
    parts: list[Batch]
    """As many on every rank."""


class TrainingImages:
    """The images of a cohort or a release in their three sets.

    From a cohort the noise is drawn while training; from a release it is what was released. All that decides a batch
    is (seed, epoch, image), so batches can be made in any order and anywhere. `config` is the given one with the
    noise and the objective that the data decide.
    """

    def __init__(self, data: Cohort | Release, config: RunConfig) -> None:
        self.data = data
        self.noise = _noise_of(data, config)
        self.holds_clean = isinstance(data, Cohort) or data.pairs
        self.choice = choose_objective(config, clip=self.noise.clip, clean=self.holds_clean, path=data.path)
        self.config = with_objective(config.model_copy(update={"noise": self.noise}), self.choice)
        self.sets = _sets(data, config)

    @classmethod
    def open(cls, path: str | Path, config: RunConfig, *, verify: bool = True) -> TrainingImages:
        """Open and verify a cohort or release. Raises CohortError where it is damaged or cannot be trained on.

        One rank on each machine is enough to `verify`, which reads every pixel.
        """
        data = open_data(path)
        if verify:
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
        rows = self._batch_rows(epoch, index)
        return self._training_images(rows, epoch, device, weights=self._weights(len(rows)))

    def training_parts(self, epoch: int, index: int, device: torch.device, group: Group = ALONE) -> TrainingParts:
        """Batch `index` of an epoch in `train.accumulate` parts, and of each part the slice that is this rank's.

        The slices of all ranks are the batch of `training_batch`; in an epoch's last batch some may be empty.
        """
        rows = self._batch_rows(epoch, index)
        count = min(self.config.train.accumulate, len(rows))
        bounds = [len(rows) * part // count for part in range(count + 1)]
        weights = self._weights(len(rows))
        parts = []
        for start, end in itertools.pairwise(bounds):
            own = _slice(end - start, group)
            parts.append(self._training_images(rows[start:end][own], epoch, device, weights=weights[start:end][own]))
        return TrainingParts(images=len(rows), parts=parts)

    def held_out_batches(
        self, name: str, device: torch.device, *, batch_size: int, group: Group = ALONE
    ) -> Iterator[Batch]:
        """Every image of a set once, size by size, each with its one noise; of a group, this rank's share of them."""
        own = self.sets[name][_slice(len(self.sets[name]), group)]
        for rows in self.data.groups(own):
            for start in range(0, len(rows), batch_size):
                yield self.held_out_batch(rows[start : start + batch_size], device)

    def held_out_batch(self, rows: Rows, device: torch.device) -> Batch:
        """Given images of one size, whole, with noise that is fixed once and for all and always drawn on the CPU."""
        batch = self._held_out(rows, device)
        if self.choice.objective == "supervised":
            return batch
        names = [f"{self.config.evaluate.noise_seed}/held-out/{self.image_id(int(row))}" for row in rows]
        return self._with_field(batch, names, np.ones(len(rows), dtype=np.float32))

    def _held_out(self, rows: Rows, device: torch.device) -> Batch:
        if isinstance(self.data, Release):
            noisy, clean = (None if gather is None else _tensor(gather(rows)).to(device) for gather in self._gathers())
            assert noisy is not None
            return Batch(rows=rows, noisy=noisy, originals=clean, known=self._stated(rows, device))
        # A name of its own, which no epoch of the training can meet.
        fixed = self.noise.model_copy(update={"fresh": False})
        clean = _tensor(self.data.gather(rows))
        batch = self._obfuscated(rows, clean, fixed, seed=self.config.evaluate.noise_seed, prefix="held-out/")
        return Batch(rows=rows, noisy=batch.noisy.to(device), originals=clean.to(device), known=batch.known.to(device))

    def image_id(self, row: int) -> str:
        """Name of the image in a row."""
        return self.data.image_id(row)

    def _batch_rows(self, epoch: int, index: int) -> Rows:
        rows = self.sets["train"]
        order = _generator(self.config.seed, "order", epoch).permutation(len(rows))
        size = self.config.train.batch_size
        return rows[order[index * size : (index + 1) * size]]

    def _weights(self, images: int) -> Floats:
        """How much the probe of each image in a batch counts: every k-th for all, the others not at all."""
        weights = np.zeros(images, dtype=np.float32)
        probed = weights[:: self.config.train.probe_every]
        probed[:] = images / len(probed)
        return weights

    def _training_images(self, rows: Rows, epoch: int, device: torch.device, *, weights: Floats) -> Batch:
        if not len(rows):
            side = self.config.train.crop
            empty = torch.empty((0, 1, *((side, side) if side else self.data.sizes[0])), device=device)
            batch = Batch(rows=rows, noisy=empty, originals=empty, known=torch.empty((0, 2), device=device))
        else:
            batch = self._training_pairs(rows, epoch, device)
        if self.choice.objective == "supervised":
            return batch
        return self._with_field(
            batch, [f"{self.config.seed}/{epoch}/{self.image_id(int(row))}" for row in rows], weights
        )

    def _with_field(self, batch: Batch, names: Sequence[str], weights: Floats) -> Batch:
        """The batch with what its objective draws, by the names of its images."""
        shape = batch.noisy.shape[-2], batch.noisy.shape[-1]
        device = batch.noisy.device
        field = sign_fields(names, shape) if names else torch.empty_like(batch.noisy)
        return replace(batch, field=field.to(device), weight=torch.from_numpy(weights).to(device))

    def _training_pairs(self, rows: Rows, epoch: int, device: torch.device) -> Batch:
        if isinstance(self.data, Release):
            noisy, clean = (
                None if gather is None else self._augmented(gather, rows, epoch, device) for gather in self._gathers()
            )
            assert noisy is not None
            return Batch(rows=rows, noisy=noisy, originals=clean, known=self._stated(rows, device))
        clean = self._augmented(self.data.gather, rows, epoch, device)
        batch = self._obfuscated(rows, clean, self.noise, seed=self.config.seed, epoch=epoch)
        return batch if self.config.train.degradation == "noise" else self._with_other_tasks(batch, epoch)

    def _with_other_tasks(self, batch: Batch, epoch: int) -> Batch:
        """The batch with some of its images compressed or enlarged instead of noisy, drawn as the noise is."""
        noisy, known = batch.noisy.clone(), batch.known.clone()
        drawn = epoch if self.noise.fresh else 0
        for index, row in enumerate(batch.rows):
            name = f"{self.config.seed}/{drawn}/{self.image_id(int(row))}"
            other = other_task(batch.clean[index, 0].cpu().numpy(), name=name)
            if other is not None:
                noisy[index, 0] = torch.from_numpy(other)
                known[index] = 0.0
        return replace(batch, noisy=noisy, known=known)

    def _gathers(self) -> tuple[Gather, Gather | None]:
        """Noisy and clean images of a release; None where it has no clean ones."""
        assert isinstance(self.data, Release)
        return self.data.gather_noisy, self.data.gather_clean if self.data.pairs else None

    def _obfuscated(
        self, rows: Rows, clean: Tensor, noise: NoiseConfig, *, seed: int, epoch: int = 0, prefix: str = ""
    ) -> Batch:
        names = [prefix + self.image_id(int(row)) for row in rows]
        draws = [keyed_draw(noise, seed=seed, epoch=epoch, image_id=name) for name in names]
        known = torch.tensor([(draw.mean, draw.std) for draw in draws], dtype=torch.float32, device=clean.device)
        return Batch(rows=rows, noisy=apply_draws(clean, draws, clip=noise.clip), originals=clean, known=known)

    def _stated(self, rows: Rows, device: torch.device) -> Tensor:
        """(N, 2): what a release says of the noise of its images."""
        assert isinstance(self.data, Release)
        stds = torch.from_numpy(self.data.stds(rows))
        return torch.stack([torch.full_like(stds, self.data.noise.single_mean), stds], dim=1).to(device)

    def _augmented(self, gather: Gather, rows: Rows, epoch: int, device: torch.device) -> Tensor:
        """(N, 1, H, W): cut and mirrored by (seed, epoch, image), so that clean and noisy images go alike."""
        train = self.config.train
        if not train.crop and not train.flips:
            return _tensor(gather(rows)).to(device, non_blocking=True)
        images = []
        for row in rows:
            key = keyed(f"{self.config.seed}/{epoch}/{self.image_id(int(row))}", b"augment")
            image = gather(np.array([row]))[0]
            image = _cut(image, train.crop, key >> 1) if train.crop else image
            images.append(image[:, ::-1] if train.flips and key & 1 else image)
        return _tensor(np.stack(images)).to(device, non_blocking=True)


def _slice(count: int, group: Group) -> slice:
    """This rank's share of `count` rows."""
    own = share(count, group)
    return slice(own.start, own.stop)


def _noise_of(data: Cohort | Release, config: RunConfig) -> NoiseConfig:
    if isinstance(data, Cohort):
        return config.noise
    if config.train.degradation != "noise":
        raise UsageError(
            f"train.degradation = '{config.train.degradation}' is for cohorts: the noisy images of {data.path} are made"
        )
    wanted = config.noise
    if "noise" in config.model_fields_set and (wanted.mean, wanted.std, wanted.clip) != (
        data.noise.mean,
        data.noise.std,
        data.noise.clip,
    ):
        raise UsageError(
            f"the configuration asks for noise mean {wanted.mean}, std {wanted.std}, clip {wanted.clip}, but the "
            f"release was made with mean {data.noise.mean}, std {data.noise.std}, clip {data.noise.clip}; "
            "set noise.mean, noise.std and noise.clip to the release's"
        )
    return data.noise


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _sets(data: Cohort | Release, config: RunConfig) -> dict[str, Rows]:
    crop = config.train.crop
    if len(data.sizes) > 1 and not crop:
        sizes = f"{len(data.sizes)} sizes, {_text(data.sizes[0])} to {_text(data.sizes[-1])}"
        raise CohortError(f"{data.path} holds images of {sizes}; import them with --size, or set train.crop")
    small = min(min(size) for size in data.sizes)
    if crop > small:
        raise UsageError(f"train.crop = {crop} is larger than the smallest side of an image, {small}")
    if (crop or small) < SMALLEST:
        raise CohortError(f"{data.path} holds images of {small} pixels a side; networks and metrics need {SMALLEST}")
    codes = image_split(data.image_ids, seed=config.split.seed) if config.split.rule == "paper" else data.split_codes
    sets: dict[str, Rows] = {name: np.flatnonzero(codes == code) for code, name in enumerate(SPLITS)}
    for name in ("train", "validation"):
        if not len(sets[name]):
            raise CohortError(f"{data.path} has no images in its {name} set; training needs some in both{_why(data)}")
    return sets


def _why(data: Cohort | Release) -> str:
    """Why a set may be empty, where that is plain."""
    if len(data) == 1:
        return ", and this is one image"
    patients = len({data.patient_id(row) for row in range(len(data))})
    return f", and all its {len(data)} images are of one patient, who is in one set alone" if patients == 1 else ""


def _tensor(pixels: FloatImage) -> Tensor:
    return torch.from_numpy(pixels).unsqueeze(1)


def _cut(image: FloatImage, side: int, key: int) -> FloatImage:
    """The square of an image (H, W) whose corner is drawn evenly by `key`."""
    key, left = divmod(key, image.shape[1] - side + 1)
    top = key % (image.shape[0] - side + 1)
    return image[top : top + side, left : left + side]


def _generator(seed: int, purpose: str, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=keyed(f"{seed}/{epoch}", purpose.encode())))
