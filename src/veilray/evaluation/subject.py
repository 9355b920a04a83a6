"""What is evaluated and compared: the network of a run folder, an opened model, or one that ships, and its training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from veilray.cohort.cohort import Cohort
from veilray.cohort.matching import with_originals
from veilray.cohort.open import open_data
from veilray.cohort.release import Release
from veilray.errors import CohortError, RunError, UsageError
from veilray.evaluation.levels import for_scoring
from veilray.evaluation.results import Summary
from veilray.models.exported import MODEL_RECORD, is_exported, read_exported
from veilray.models.shipped.find import SHIPPED, shipped_model
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.run import EpochRecord, RunFolder
from veilray.training.source import shipped_name


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A trained network and what is known of its training."""

    source: str | Path
    """What `Denoiser.load` takes: the path of a run folder or an opened model, or `shipped:NAME`."""
    kind: Literal["run", "opened", "shipped"]
    config: RunConfig
    environment: dict[str, Any]
    """Hardware, versions and data of the training; of any but a run, what its card or record says."""
    curve: tuple[EpochRecord, ...]
    """Empty for any but a run."""

    @property
    def folder(self) -> Path | None:
        """Of a run or an opened model; None for a shipped network."""
        return self.source if isinstance(self.source, Path) else None

    @property
    def title(self) -> str:
        """What it is called in what a command prints."""
        return self.config.model.name if self.folder is not None else str(self.source).removeprefix(SHIPPED)


def open_subject(source: str | Path) -> Subject:
    """A run folder, an opened model, or a shipped network by its name, which a `Path` never is.

    Raises UsageError where there is no network of that name, RunError where the folder holds no run and no model.
    """
    bare = isinstance(source, str) and Path(source).name == source
    name = shipped_name(source) if bare else None
    if name is not None:
        return _shipped(name)
    folder = Path(source)
    if is_exported(folder):
        return _opened(folder)
    run = RunFolder(folder)
    config = run.config()
    environment, curve = run.environment(), tuple(run.epochs())
    return Subject(source=folder, kind="run", config=config, environment=environment, curve=curve)


def subject_of_results(folder: Path, summary: Summary) -> Subject:
    """What the results in a folder are of: the run there, or the network that the summary names."""
    if summary.model.startswith(SHIPPED):
        return open_subject(summary.model)
    return open_subject(Path(os.path.normpath(folder / summary.model)) if summary.model else folder)


def name_from(folder: Path, subject: Subject) -> str:
    """What a summary in `folder` calls its subject: empty for the run there, relative for a folder above."""
    if subject.folder is None:
        return str(subject.source)
    here, there = folder.resolve(), subject.folder.resolve()
    if here == there:
        return ""
    return os.path.relpath(there, here) if here.is_relative_to(there) else str(there)


def open_images(
    subject: Subject, path: str | Path, *, originals: str | Path | None = None, verify: bool = True
) -> TrainingImages:
    """The data that a subject is scored on, with the noise of its configuration, or of the release that they are.

    `originals`: the cohort that a release was made from, whose images are then the clean ones. For any subject but a
    run the data need not be like those of its training, neither in size nor in noise. Raises CohortError where they are
    damaged or cannot be scored, and as `check_data`; UsageError for originals of what is no release.
    """
    data = open_scored(path, originals=originals, verify=verify)
    check_data(subject, data)  # before what else may be wrong with data that are others
    if subject.kind == "run":
        return TrainingImages(data, for_scoring(subject.config))
    # A release's noise is compared with that of a configuration only where it is set there.
    names = [name for name in RunConfig.model_fields if name != "noise" or isinstance(data, Cohort)]
    return TrainingImages(data, for_scoring(RunConfig(**{name: getattr(subject.config, name) for name in names})))


def open_scored(path: str | Path, *, originals: str | Path | None, verify: bool = True) -> Cohort | Release:
    """A cohort, or a release, with the originals in another cohort where they are named; errors as `open_images`."""
    data = open_data(path)
    if verify:
        data.verify()
    if originals is None:
        return data
    if not isinstance(data, Release):
        raise UsageError(f"{data.path} is a cohort, whose images are clean: leave --originals out, or name a release")
    cohort = Cohort.open(originals)
    if verify:
        cohort.verify()
    return with_originals(data, cohort)


def check_data(subject: Subject, data: Cohort | Release) -> str:
    """What must be noted of the data that a subject is scored on; empty where they are those of its training.

    Raises CohortError where it is known that they are others than a run or an opened model was trained on: its test
    images may have been trained on.
    """
    expected = subject.environment.get("cohort_digest")
    if expected == data.digest:
        return ""
    release = subject.environment.get("release_id")
    if subject.kind == "opened" and release is not None:
        raise CohortError(
            f"{subject.folder} was trained on release {release}, and {data.path} is not that: which images it "
            "has seen, the sets of the release say; give --data RELEASE --originals COHORT"
        )
    if subject.kind == "run":
        raise CohortError(
            f"{subject.folder} was trained on data with digest {str(expected)[:12]}, but {data.path} has "
            f"{data.digest[:12]}: its test images may have been trained on; give the data that it was trained on"
        )
    trained = subject.environment.get("cohort")
    return f"{subject.title} was trained on other data ({trained}); whether some images are in both is not known."


def _opened(folder: Path) -> Subject:
    record = read_exported(folder)
    told = record.config or {"train": {"epochs": record.epochs}}
    try:
        config = RunConfig.model_validate({**told, "model": record.model, "noise": record.noise})
    except ValidationError:
        raise RunError(f"{folder / MODEL_RECORD} holds a configuration that this Veilray does not know") from None
    if config.split.rule == "paper":
        # Its sender would choose the sets, too: by the seed of that split.
        raise RunError(
            f"{folder} was trained on the paper's split by image, so that the test set here holds patients that it has "
            "seen; ask for one that was trained with split.rule = 'cohort'"
        )
    environment = {
        "veilray": record.veilray,
        "device": "",
        "parameters": record.parameters,
        "cohort": "at the site that sealed it",
        "n_train": record.data.train_images,
        "n_train_patients": record.data.train_patients,
        "n_validation": record.data.validation_images,
        "n_validation_patients": record.data.validation_patients,
    }
    if record.release is not None:
        environment |= {"release_id": record.release.release_id, "cohort_digest": record.release.digest}
    return Subject(source=folder, kind="opened", config=config, environment=environment, curve=())


def _shipped(name: str) -> Subject:
    model = shipped_model(name)
    card = model.card
    try:
        config = RunConfig.model_validate(card.config)
    except ValidationError:
        raise RunError(f"the card of {name} holds a configuration that this Veilray does not know") from None
    environment = {
        "veilray": card.trained_by,
        "device": "",
        "parameters": card.parameters,
        "cohort": card.data.name,
        "cohort_digest": card.data.cohort_digest,
        "n_train": card.data.train_images,
        "n_train_patients": card.data.train_patients,
        "n_validation": card.data.validation_images,
        "n_validation_patients": card.data.validation_patients,
    }
    return Subject(source=SHIPPED + name, kind="shipped", config=config, environment=environment, curve=())
