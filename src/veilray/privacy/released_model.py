"""Membership inference on a denoiser that leaves the hospital: which patients its training saw.

The attacker holds clean radiographs of a patient, adds noise of their own as the training did, and looks at how well
the model restores them.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilray.cohort.cohort import Cohort
from veilray.cohort.matching import with_originals
from veilray.cohort.release import Release
from veilray.errors import DataError
from veilray.files import read_json, write_json
from veilray.images.radiograph import FloatImage
from veilray.inference.denoiser import Denoiser
from veilray.obfuscation.noise import apply_draws, keyed_draw
from veilray.privacy.data import Progress
from veilray.privacy.membership import Train, lira, loss_threshold, patient_losses
from veilray.privacy.pairs import Codes, Mask, patient_codes
from veilray.privacy.results import AttackResult, Skipped
from veilray.training.data import TrainingImages
from veilray.training.loop import train
from veilray.training.run import EpochRecord, RunFolder

Floats = npt.NDArray[np.float64]


class Restores(Protocol):
    """What is asked of a model: its guess at the clean images."""

    def denoise(self, noisy: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
        """(N, 1, H, W) and the noise's mean and std, (N,) each -> (N, 1, H, W)."""


DRAWS = 2
"""Noise fields over which an image's loss is averaged."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """Whom the attack asks about: the patients of a run's training set, and those of its test set."""

    images: TrainingImages
    """What the run was trained on: a cohort, or a release with its originals."""
    rows: Codes
    """(N,): rows of it."""
    patients: Codes
    """(N,): 0 to P - 1."""
    member: Mask
    """(P,)"""

    def clean(self, rows: Codes) -> FloatImage:
        """Originals of some rows: (n, H, W), float32, [0, 1]."""
        data = self.images.data
        return data.gather_clean(rows) if isinstance(data, Release) else data.gather(rows)


def attack_run(
    run: str | Path,
    cohort: str | Path,
    *,
    release: str | Path | None = None,
    seeds: Sequence[int],
    progress: Progress,
    shadows: int = 0,
    most: int | None = None,
    folder: Path | None = None,
) -> list[AttackResult | Skipped]:
    """Whether a run's weights tell which patients of `cohort` it was trained on.

    Members are the patients of its training set, the others those of its test set. By a threshold on the loss, and with
    `shadows` (16 or more, even) also by the likelihood ratio attack, which trains as many networks as that run was, and
    keeps in `folder`, where one is given, what each told, so that a stopped attack goes on. The losses are taken once
    under the noise of each of `seeds`, of which the first decides the shadow models too. `most`: how many members,
    and how many others, are asked about at most. `release`: the one of this cohort that the run was trained on; sets
    and training images then are the release's, and the cohort is that of its originals. Raises what opening the run
    and its data raises.
    """
    trained = RunFolder(run)
    question = question_of(trained, Path(cohort), release=None if release is None else Path(release), most=most)
    progress("losses of the released model")
    losses = _losses(Denoiser.load(run), question, seeds)
    name = trained.path.name
    found = loss_threshold(losses, question.member, model=name)
    if shadows:
        shadow = _shadow_trainer(question, seeds=seeds, folder=folder, progress=progress)
        found += lira(losses, question.member, shadow, model=name, shadows=shadows, seed=seeds[0], progress=progress)
    seen = {"n_images": len(question.rows), "seeds": tuple(seeds)}
    return [one.model_copy(update=seen) if isinstance(one, AttackResult) else one for one in found]


def _losses(denoiser: Restores, question: Question, seeds: Sequence[int]) -> Floats:
    """(S, P): each patient's loss under the noise of each seed."""
    told = [patient_losses(image_losses(denoiser, question, seed=seed), question.patients) for seed in seeds]
    return np.stack(told)


def image_losses(denoiser: Restores, question: Question, *, seed: int) -> Floats:
    """Mean squared error of each restored image over some noise fields, (N,)."""
    noise = question.images.noise
    losses = np.empty(len(question.rows))
    for place, row in enumerate(question.rows):
        clean = torch.from_numpy(question.clean(np.array([row])))[:, None]
        name = question.images.image_id(int(row))
        draws = [keyed_draw(noise, seed=seed, epoch=0, image_id=f"membership/{k}/{name}") for k in range(DRAWS)]
        noisy = apply_draws(clean.expand(DRAWS, -1, -1, -1).contiguous(), draws, clip=noise.clip)
        told = torch.tensor([(draw.mean, draw.std) for draw in draws])
        output = denoiser.denoise(noisy, mean=told[:, 0], std=told[:, 1])
        losses[place] = float((output - clean).square().mean())
    return losses


def question_of(folder: RunFolder, cohort: Path, *, release: Path | None = None, most: int | None = None) -> Question:
    """Whom a run and its data let ask about; see `attack_run`."""
    data: Cohort | Release = Cohort.open(cohort)
    data.verify()
    if release is not None:
        released = Release.open(release)
        released.verify()
        data = with_originals(released, Cohort.open(cohort))
    images = TrainingImages(data, folder.config())
    names = {row: images.data.patient_id(int(row)) for part in ("train", "test") for row in images.sets[part]}
    trained = {names[row] for row in images.sets["train"]}
    others = set(names.values()) - trained
    draw = np.random.default_rng(0)
    asked = {patient for group in (trained, others) for patient in draw.permutation(sorted(group))[:most].tolist()}
    rows = np.array(sorted(row for row, patient in names.items() if patient in asked), dtype=np.int64)
    patients = patient_codes([names[row] for row in rows])
    member = np.zeros(int(patients.max()) + 1, dtype=np.bool_)
    member[patients[[names[row] in trained for row in rows]]] = True
    return Question(images=images, rows=rows, patients=patients, member=member)


def _shadow_trainer(question: Question, *, seeds: Sequence[int], folder: Path | None, progress: Progress) -> Train:
    """Trains a network as the run was, on other patients, and gives every patient's loss under it."""

    def shadow(mask: Mask, shadow_seed: int) -> Floats:
        told = [
            question.images.data.digest,
            question.images.config.model_dump_json(),
            question.rows.tolist(),
            DRAWS,
            list(seeds),
        ]
        name = hashlib.sha256(repr([*told, mask.tolist(), shadow_seed]).encode()).hexdigest()
        kept = None if folder is None else folder / f"shadow-{name[:16]}.json"
        losses = None if kept is None else _kept_losses(kept, (len(seeds), len(mask)))
        if losses is None:
            losses = trained(mask, shadow_seed)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_json(kept, losses.tolist())
        return losses

    def trained(mask: Mask, shadow_seed: int) -> Floats:
        config = question.images.config.model_copy(update={"seed": shadow_seed})
        images = TrainingImages(question.images.data, config)
        images.sets["train"] = question.rows[mask[question.patients]]
        with tempfile.TemporaryDirectory() as scratch:
            run = RunFolder.create(Path(scratch) / "shadow", config)
            run.write_environment({}, device=torch.device("cpu"))
            train(config, images, run, device=torch.device("cpu"), watcher=_Telling(progress))
            return _losses(Denoiser.load(run.path), question, seeds)

    return shadow


def _kept_losses(path: Path, shape: tuple[int, int]) -> Floats | None:
    """What an earlier run kept of a shadow model, (S, P); None where there is nothing or it was cut short."""
    with suppress(DataError, ValueError, TypeError):
        losses = np.array(read_json(path), dtype=np.float64)
        if losses.shape == shape and np.isfinite(losses).all():
            return losses
    return None


class _Telling:
    """Watches the training of a shadow model."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, *, images: int) -> None:
        """Training begins."""

    def step(self, *, step: int, images: int, loss: float) -> None:
        """A step is done."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""
        self._progress(f"shadow model, epoch {record.epoch} done")

    def note(self, message: str) -> None:
        """Something to say."""
