"""The arms of noisy_only.py: data, networks and trainings; nothing here trains or scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from common import RESULTS
from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.leaving import Contents, Leaving
from veilray.cohort.noise_source import seeded_noise
from veilray.cohort.obfuscate import write_release
from veilray.cohort.split import Shares
from veilray.obfuscation.config import NoiseConfig
from veilray.training.config import PROBED, Objective, RunConfig
from veilray.training.start import with_pinned_start

EPOCHS = 25
"""Passes of a supervised run; of another, as many as cost the same."""
SEARCH_EPOCHS = 8
"""The same of the runs that choose a learning rate."""
START_EPOCHS = 600
"""Passes of the run that started arms begin from, over another hospital's images: a quarter as many as a release's."""
RATE_OF_THE_START = 1.35e-2
"""The learning rate of that run."""
BATCH, CROP, SEARCH_CROP = 8, 96, 64
"""Crops of twice the network's receptive radius of 47 pixels, so that a pixel may see all round it."""
PROBE_EVERY = 2
NETWORK = {"name": "nafnet", "width": 4, "depth": 3, "fold": 2, "residual": True}
WIDE = {**NETWORK, "width": 8}
"""A wider network, of some arms: for as many passes, whose steps take longer."""
RATES = (4.5e-3, 1.35e-2, 3e-2, 4e-2, 1.2e-1)
"""Learning rates that are tried, on the validation images."""
CHOSEN = {"supervised": 3e-2, "noisy": 3e-2}
"""The rate of each kind of arm. In the search 0.04 is best for both; over all passes it left some runs near where they
began, so the next lower one that was tried."""
START_RATES = (1e-3, 4e-3, 1.6e-2)
"""The same for arms that begin from trained weights."""
START_RATE = 4e-3
"""The rate of arms that begin from trained weights, after `--search`."""
LEVELS = (0.2, 0.1, 0.3)
SEEDS = (1, 2, 3)
SECOND_DRAW = 100
"""By which the seeds of second releases lie above those of first ones."""
VALIDATION_IMAGES = 30
"""One of each of so many patients: a set that costs less than the epoch before it."""
MEAN = 0.1

Kind = Literal["main", "reference", "objective", "help", "search"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to train, on one kind of release."""

    objective: Objective
    clip: bool
    kind: Kind
    fresh: bool = False
    """Noise drawn anew every pass, which a release cannot do: trained on the cohort."""
    mixed: bool = False
    """With clean images of another hospital in every batch."""
    started: bool = False
    """From weights that were trained on the clean images of another hospital."""
    trained: bool = True
    """Or those weights as they are."""
    wide: bool = False
    """Of the wider network."""
    times: int = 1
    """The work, in that of other arms."""
    rate: float | None = None
    """Learning rate, where it is not the chosen one."""

    @property
    def name(self) -> str:
        """`sure`, `supervised, fresh noise`, ..."""
        if not self.trained:
            return "the start as it is"
        marks = [("fresh noise", self.fresh), ("mixed", self.mixed), ("started", self.started)]
        marks += [(f"width {WIDE['width']}", self.wide), (f"{self.times} times the work", self.times > 1)]
        rate = [] if self.rate is None else [f"rate {self.rate:g}"]
        return ", ".join([self.objective, *(mark for mark, on in marks if on), *rate])

    @property
    def reference(self) -> str:
        """The name of the arm with clean targets that it is held against: from the same weights, with the same work."""
        own = Arm(objective="supervised", clip=self.clip, kind="main")
        return replace(own, started=self.started, wide=self.wide, times=self.times).name

    @property
    def work(self) -> float:
        """Of a step, in that of a supervised one: processor seconds, as noisy_only_step.py measured them."""
        measured = step_ratios()
        name = f"{self.objective}, every {PROBE_EVERY}" if self.objective in PROBED else self.objective
        same = {"noisier2noise": "r2r", "noise2noise": "supervised"}  # in what a step does
        return measured[same.get(name, name)]

    @property
    def epochs(self) -> int:
        """Passes over the training images. A mixed run takes half a batch of them a step, so half the passes."""
        passes = self.times * (SEARCH_EPOCHS if self.kind == "search" else EPOCHS) / self.work
        return max(1, round(passes / 2 if self.mixed else passes))

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        if self.rate is not None:
            return self.rate
        if self.started:
            return START_RATE
        return CHOSEN["supervised" if self.objective == "supervised" else "noisy"]


@cache
def step_ratios() -> dict[str, float]:
    """What a training step by each objective costs, in supervised ones: noisy_only_step.py's record."""
    record = json.loads((RESULTS / "noisy_only_step.json").read_text(encoding="utf-8"))
    return {name: step["ratio"] for name, step in record["steps"].items()}


BEST: dict[bool, Objective] = {True: "censored_sure", False: "sure"}
"""What `auto` takes, by whether the release is clamped."""
CLIPS = (True, False)
MAIN = [Arm(objective=name, clip=clip, kind="main") for clip in CLIPS for name in ("supervised", BEST[clip])]
REFERENCES = [
    *(Arm(objective="supervised", clip=clip, kind="reference", fresh=True) for clip in CLIPS),
    *(Arm(objective=BEST[clip], clip=clip, kind="reference", fresh=True, started=True) for clip in CLIPS),
]
STARTS = [Arm(objective="supervised", clip=clip, kind="reference", started=True, trained=False) for clip in CLIPS]
STARTED = [replace(one, kind="help", started=True) for one in MAIN]
LONGER = [replace(one, times=4) for one in STARTED]
_OPEN_STARTED: tuple[Objective, ...] = ("noise2noise", "r2r")
OTHERS_STARTED = [Arm(objective=name, clip=False, kind="help", started=True) for name in _OPEN_STARTED]
WIDER = [replace(one, wide=True) for one in STARTED]
MIXED = [
    Arm(objective=BEST[clip], clip=clip, kind="help", mixed=True, started=started)
    for started in (True, False)
    for clip in CLIPS
]
_OBJECTIVES: dict[bool, tuple[Objective, ...]] = {
    True: ("censored_r2r", "blind_spot", "neighbor2neighbor", "noise2noise"),
    False: ("r2r", "noisier2noise", "blind_spot", "neighbor2neighbor", "noise2noise"),
}
OTHERS = [Arm(objective=name, clip=clip, kind="objective") for clip in CLIPS for name in _OBJECTIVES[clip]]
SEARCH = [
    Arm(objective=name, clip=True, kind="search", started=started, rate=rate)
    for name in ("supervised", BEST[True])
    for started, rates in ((False, RATES), (True, START_RATES))
    for rate in rates
]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    arm: Arm
    std: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        clamp = "clamped" if self.arm.clip else "open"
        return f"{self.arm.name.replace(', ', '-').replace(' ', '-')}-{clamp}-{self.std:g}-{self.seed}"


def plan() -> list[Cell]:
    """All cells, those first that say most: started arms of all levels and seeds, then others.

    Three seeds of what the aims are about, one of the other objectives at each level, and of the rest at noise 0.2.
    """
    started, others_started, drawn = (
        [Cell(arm=arm, std=std, seed=seed) for seed in SEEDS for std in LEVELS for arm in arms]
        for arms in ([*STARTS, *STARTED], OTHERS_STARTED, MAIN)
    )
    beside = [Cell(arm=arm, std=0.2, seed=1) for arm in (*WIDER, *LONGER, *REFERENCES, *MIXED)]
    others = [Cell(arm=arm, std=std, seed=1) for std in LEVELS for arm in OTHERS]
    first = len(LEVELS) * len(MAIN)
    return [*started, *others_started, *drawn[:first], *beside, *others, *drawn[first:]]


def search() -> list[Cell]:
    """The cells that choose learning rates."""
    return [Cell(arm=arm, std=0.2, seed=1) for arm in SEARCH]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the benchmark reads and writes."""

    data: Path
    """The cohort, with the split of splits/nih256.csv."""
    public: Path
    """Another hospital's radiographs."""
    out: Path
    """Runs and releases."""

    def release(self, cell: Cell, *, second: bool = False) -> Path:
        """The cell's release, with its originals beside the noisy images, or a second draw; made where it is missing.

        Each seed has a release of its own, so that it stands for the noise too. Names are the originals', for a run to
        be repeatable; the release leaves nowhere.
        """
        seed = SECOND_DRAW + cell.seed if second else cell.seed
        folder = self.out / "releases" / f"{'clamped' if cell.arm.clip else 'open'}-{cell.std:g}-{seed}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            cohort = Cohort.open(self._own_cohort())
            noise = NoiseConfig(mean=MEAN, std=cell.std, clip=cell.arm.clip)
            source = seeded_noise(noise, cohort=cohort, seed=seed)
            write_release(cohort, folder, noise=noise, source=source, contents=contents(cohort), pairs=True)
        return folder

    def _own_cohort(self) -> Path:
        """A copy of the cohort, because lists of pseudonyms are kept in it."""
        folder = self.out / "cohort"
        if not folder.exists():
            part = self.out / "cohort.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(self.data, part)
            part.rename(folder)
        return folder

    def public_cohort(self) -> Path:
        """The other hospital's radiographs as a cohort."""
        folder = self.out / "public"
        if not folder.exists():
            shares = Shares(train=90, validation=10, test=0)
            import_radiographs([self.public], folder, size=256, workers=1, shares=shares)
        return folder

    def start(self, *, wide: bool) -> Path:
        """The run that started arms begin from."""
        return self.out / ("start-wide" if wide else "start")


def contents(cohort: Cohort) -> Contents:
    """All training and test images, and one validation image of each of some patients."""
    seen: set[str] = set()
    images = []
    for row in range(len(cohort)):
        image = Leaving(row=row, image=cohort.image_id(row), patient=cohort.patient_id(row))
        if image.split_in(cohort) == "validation":
            if image.patient in seen or len(seen) == VALIDATION_IMAGES:
                continue
            seen.add(image.patient)
        images.append(image)
    return Contents(images=images)


def config_of(cell: Cell, places: Places, *, pinned: bool = True) -> RunConfig:
    """The configuration of a cell, its start pinned, which must be there then."""
    arm = cell.arm
    own: dict[str, Any] = {"objective": arm.objective, "epochs": arm.epochs, "learning_rate": arm.learning_rate}
    own |= {"crop": SEARCH_CROP} if arm.kind == "search" else {}
    own |= {"probe_every": PROBE_EVERY} if arm.objective in PROBED else {}
    own |= {"start": str(places.start(wide=arm.wide))} if arm.started else {}
    noise = {"mean": MEAN, "std": cell.std, "clip": arm.clip, "fresh": arm.fresh}
    config = recipe(cell.seed, noise, own, wide=arm.wide)
    return with_pinned_start(config) if pinned else config


def start_config(*, wide: bool) -> RunConfig:
    """Of the run that started arms begin from: supervised, at noise from 0.05 to 0.35."""
    noise = {"mean": MEAN, "std": (0.05, 0.35), "clip": True}
    return recipe(1, noise, {"epochs": START_EPOCHS, "learning_rate": RATE_OF_THE_START}, wide=wide)


@cache
def _parameters(*, wide: bool) -> int:
    from veilray.models.build import build_model

    return sum(one.numel() for one in build_model(recipe(1, {}, {}, wide=wide).model).parameters())


def setting() -> dict[str, Any]:
    """What the record says of all runs."""
    return {
        "network": NETWORK,
        "parameters": _parameters(wide=False),
        "wide": {"network": WIDE, "parameters": _parameters(wide=True)},
        "batch": BATCH,
        "crop": CROP,
        "epochs_of_a_supervised_run": EPOCHS,
        "epochs_of_the_start": START_EPOCHS,
        "rate_of_the_start": RATE_OF_THE_START,
        "search": {"epochs_of_a_supervised_run": SEARCH_EPOCHS, "crop": SEARCH_CROP},
        "probe_every": PROBE_EVERY,
        "learning_rates": {**CHOSEN, "started": START_RATE},
        "validation_images": VALIDATION_IMAGES,
    }


def recipe(seed: int, noise: dict[str, Any], own: dict[str, Any], *, wide: bool = False) -> RunConfig:
    """A network and the training that all runs share."""
    shared = {"batch_size": BATCH, "crop": CROP, "flips": True, "loss": "mse", "optimizer": "adamw"}
    shared |= {"weight_decay": 1e-4, "ema_decay": 0.99}
    return RunConfig.model_validate(
        {
            "seed": seed,
            "noise": noise,
            "model": WIDE if wide else NETWORK,
            "train": {**shared, **own},
            "launch": {"device": "cpu", "precision": "fp32"},
        }
    )
