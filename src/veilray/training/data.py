"""Batches for training, validation and test: images from a cohort or a release, with the noise each one gets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilray.cohort.cohort import Cohort
from veilray.cohort.open import open_data
from veilray.cohort.release import Release
from veilray.cohort.split import shared_patients
from veilray.images.radiograph import FloatImage
from veilray.obfuscation.config import NoiseConfig
from veilray.obfuscation.noise import apply_draws, keyed, keyed_draw
from veilray.parallel.group import ALONE, Group, share
from veilray.training.batch import Batch, TrainingParts, concatenated
from veilray.training.companions import Gather, open_companions, public_config, second_gather, with_companions
from veilray.training.config import RunConfig
from veilray.training.degradation import other_task
from veilray.training.draws import Drawn, draw
from veilray.training.objectives.choose import choose_objective, with_objective
from veilray.training.prefetch import prefetched
from veilray.training.sets import Rows, noise_of, sets_of

Floats = npt.NDArray[np.float32]
_NONE = np.zeros(0, dtype=np.float32)


def holds_clean(data: Cohort | Release) -> bool:
    """Whether data hold the clean images: a cohort does, and a release with pairs."""
    return isinstance(data, Cohort) or data.pairs


class TrainingImages:
    """The images of a cohort or a release in their three sets.

    From a cohort the noise is drawn while training; from a release it is what was released. All that decides a batch
    is (seed, epoch, image), so batches can be made in any order and anywhere. `config` is the given one with the
    noise and the objective that the data decide.

    Beside a release without clean images there may be `clean`, a cohort of public images, which get noise of the same
    law and are trained on with their clean ones, or `second`, another release of the very images.
    """

    def __init__(
        self, data: Cohort | Release, config: RunConfig, *, clean: Cohort | None = None, second: Release | None = None
    ) -> None:
        self.data = data
        self.noise = noise_of(data, config)
        self.holds_clean = holds_clean(data)
        self.choice = choose_objective(
            config, clip=self.noise.clip, clean=self.holds_clean, second=second is not None, path=data.path
        )
        config = with_objective(config.model_copy(update={"noise": self.noise}), self.choice)
        self.config = with_companions(config, clean=clean, second=second)
        self.sets = sets_of(data, config)
        self._public = None if clean is None else TrainingImages(clean, public_config(self.config))
        self._second = None if second is None else second_gather(data, second)

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: RunConfig,
        *,
        clean: Path | None = None,
        second: Path | None = None,
        verify: bool = True,
    ) -> TrainingImages:
        """Open and verify a cohort or release, and what stands beside it.

        One rank on each machine is enough to `verify`, which reads every pixel. Raises CohortError where something is
        damaged or cannot be trained on, UsageError where things do not go together.
        """
        data = open_data(path)
        public, other = open_companions(clean=clean, second=second)
        for one in (data, public, other):
            if verify and one is not None:
                one.verify()
        return cls(data, config, clean=public, second=other)

    def patients(self) -> dict[str, int]:
        """How many patients each set shows."""
        return {name: len({self.data.patient_id(int(row)) for row in rows}) for name, rows in self.sets.items()}

    def public_images(self) -> int:
        """How many clean public images stand beside the data."""
        return 0 if self._public is None else len(self._public.sets["train"])

    def shared_patients(self) -> int:
        """How many patients have images in more than one set: 0 but for the paper's split."""
        rows = np.concatenate(list(self.sets.values()))
        codes = np.repeat(np.arange(len(self.sets)), [len(chosen) for chosen in self.sets.values()])
        return shared_patients((self.data.patient_id(int(row)) for row in rows), codes.tolist())

    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the training images; the last may be smaller."""
        return -(-len(self.sets["train"]) // (self.config.train.batch_size - self._public_in_a_batch()))

    def images_before(self, step: int) -> int:
        """Images that have gone through the network after so many steps, public ones included."""
        epoch, index = divmod(step, self.steps_per_epoch())
        of_an_epoch = len(self.sets["train"]) + self.steps_per_epoch() * self._public_in_a_batch()
        return epoch * of_an_epoch + index * self.config.train.batch_size

    def training_batch(self, epoch: int, index: int, device: torch.device) -> Batch:
        """Batch `index` of an epoch, epochs counted from 0: shuffled by (seed, epoch)."""
        (batch,) = self._parts(epoch, index, device, count=1, group=ALONE)
        return batch

    def training_parts(self, epoch: int, index: int, device: torch.device, group: Group = ALONE) -> TrainingParts:
        """Batch `index` of an epoch in `train.accumulate` parts, and of each part the slice that is this rank's.

        The slices of all ranks are the batch of `training_batch`; in an epoch's last batch some may be empty.
        """
        images = len(self._batch_rows(epoch, index))
        parts = self._parts(epoch, index, device, count=min(self.config.train.accumulate, images), group=group)
        return TrainingParts(images=images + self._public_in_a_batch(), parts=parts)

    def _parts(self, epoch: int, index: int, device: torch.device, *, count: int, group: Group) -> list[Batch]:
        rows = self._batch_rows(epoch, index)
        weights = self._weights(len(rows))
        own = [
            self._training_images(rows[chosen], epoch, device, weights=weights[chosen])
            for chosen in _shares(len(rows), count, group)
        ]
        if self._public is None:
            return own
        number = epoch * self.steps_per_epoch() + index
        beside = self._public.beside(number, self._public_in_a_batch(), device, parts=count, group=group)
        return [replace(batch, public=public) for batch, public in zip(own, beside, strict=True)]

    def beside(self, number: int, size: int, device: torch.device, *, parts: int, group: Group) -> list[Batch]:
        """The `number`-th `size` training images, counted over all passes, in parts; this rank's share of each."""
        rows = self.sets["train"]
        chosen = []
        for place in range(number * size, (number + 1) * size):
            turn, within = divmod(place, len(rows))
            chosen.append((turn, rows[_order(self.config.seed, "public", turn, len(rows))[within]]))
        batches = []
        for own in _shares(size, parts, group):
            images = [self._training_images(np.array([row]), turn, device, weights=_NONE) for turn, row in chosen[own]]
            batches.append(
                concatenated(images) if images else self._training_images(rows[:0], 0, device, weights=_NONE)
            )
        return batches

    def _public_in_a_batch(self) -> int:
        if self._public is None:
            return 0
        size = self.config.train.batch_size
        return min(max(1, round(size * self.config.train.clean_share)), size - 1)

    def held_out_batches(
        self, name: str, device: torch.device, *, batch_size: int, group: Group = ALONE, ahead: int = 0
    ) -> Iterator[Batch]:
        """Every image of a set once, size by size, each with its one noise; of a group, this rank's share of them.

        `ahead` batches are prepared by as many threads before they are asked for.
        """
        own = self.sets[name][_slice(len(self.sets[name]), group)]
        chosen = [
            rows[start : start + batch_size]
            for rows in self.data.groups(own)
            for start in range(0, len(rows), batch_size)
        ]
        # Noise is drawn on the CPU, an image in about the time that a GPU needs for the network.
        yield from prefetched(
            lambda number: self.held_out_batch(chosen[number], device),
            range(len(chosen)),
            ahead=ahead,
            threads=max(1, ahead),
        )

    def held_out_batch(self, rows: Rows, device: torch.device) -> Batch:
        """Given images of one size, whole, with noise that is fixed once and for all and always drawn on the CPU."""
        batch = self._held_out(rows, device)
        if self.choice.objective == "supervised":
            return batch
        if self._second is not None:
            return replace(batch, drawn=Drawn(second=_tensor(self._second(rows)).to(device)))
        names = [f"{self.config.evaluate.noise_seed}/held-out/{self.image_id(int(row))}" for row in rows]
        return self._with_draws(batch, names, np.ones(len(rows), dtype=np.float32))

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
        order = _order(self.config.seed, "order", epoch, len(rows))
        size = self.config.train.batch_size - self._public_in_a_batch()
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
        if self._second is not None:
            other = self._augmented(self._second, rows, epoch, device) if len(rows) else batch.noisy
            return replace(batch, drawn=Drawn(second=other))
        names = [f"{self.config.seed}/{epoch}/{self.image_id(int(row))}" for row in rows]
        return self._with_draws(batch, names, weights)

    def _with_draws(self, batch: Batch, names: Sequence[str], weights: Floats) -> Batch:
        """The batch with what its objective draws, by the names of its images."""
        shape = batch.noisy.shape[-2], batch.noisy.shape[-1]
        return replace(batch, drawn=draw(self.choice.objective, names, shape, weights=weights).to(batch.noisy.device))

    def _training_pairs(self, rows: Rows, epoch: int, device: torch.device) -> Batch:
        if isinstance(self.data, Release):
            noisy, clean = (
                None if gather is None else self._augmented(gather, rows, epoch, device) for gather in self._gathers()
            )
            assert noisy is not None
            return Batch(rows=rows, noisy=noisy, originals=clean, known=self._stated(rows, device))
        clean = self._augmented(self.data.gather, rows, epoch, device)
        if self.noise.fresh:
            batch = self._obfuscated(rows, clean, self.noise, seed=self.config.seed, epoch=epoch)
        else:
            batch = self._fixed(self.data.gather, rows, clean, epoch, device)
        return batch if self.config.train.degradation == "noise" else self._with_other_tasks(batch, epoch)

    def _fixed(self, gather: Gather, rows: Rows, clean: Tensor, epoch: int, device: torch.device) -> Batch:
        """Images with the one noise of each, which is that of the whole image, cut and mirrored as the image is."""
        known: list[Tensor] = []

        def noisy(own: Rows) -> FloatImage:
            whole = self._obfuscated(own, _tensor(gather(own)), self.noise, seed=self.config.seed)
            known.append(whole.known)
            pixels: FloatImage = whole.noisy[:, 0].numpy()
            return pixels

        images = self._augmented(noisy, rows, epoch, device)
        return Batch(rows=rows, noisy=images, originals=clean, known=torch.cat(known).to(device))

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


def _shares(count: int, parts: int, group: Group) -> list[slice]:
    """Of each of so many parts of `count` rows the slice that is this rank's; some may be empty."""
    bounds = [count * part // parts for part in range(parts + 1)]
    own = [(start, share(end - start, group)) for start, end in itertools.pairwise(bounds)]
    return [slice(start + chosen.start, start + chosen.stop) for start, chosen in own]


def _slice(count: int, group: Group) -> slice:
    """This rank's share of `count` rows."""
    own = share(count, group)
    return slice(own.start, own.stop)


def _tensor(pixels: FloatImage) -> Tensor:
    return torch.from_numpy(pixels).unsqueeze(1)


def _cut(image: FloatImage, side: int, key: int) -> FloatImage:
    """The square of an image (H, W) that `key` draws: of places evenly about the image, moved inside where they overlap
    its border, by half a square at most. Of squares drawn inside alone, few would hold a pixel of the border.
    """
    height, width = (length - side for length in image.shape)
    key, left = divmod(key, width + side // 2 * 2 + 1)
    top = key % (height + side // 2 * 2 + 1)
    top, left = (min(max(0, at - side // 2), most) for at, most in ((top, height), (left, width)))
    return image[top : top + side, left : left + side]


@lru_cache(maxsize=8)
def _order(seed: int, purpose: str, epoch: int, count: int) -> Rows:
    """In which order so many images come in an epoch; kept, because every batch asks for it."""
    generator = np.random.Generator(np.random.Philox(key=keyed(f"{seed}/{epoch}", purpose.encode())))
    order = generator.permutation(count)
    order.flags.writeable = False
    return order
