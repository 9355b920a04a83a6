"""A model without its run: weights, architecture, noise and a model card, each written anew from what may leave.

Nothing of a run folder is copied as it is. Its panels, scores by image, ids, paths, dates and digests of the training
data have no place in what is written here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_origin

from pydantic import BaseModel, ValidationError

import veilray
from veilray.errors import RunError
from veilray.evaluation.results import MODEL, NOISY, SUMMARY, read_summary
from veilray.files import sha256_file, write_json, write_text
from veilray.metrics.interval import Interval
from veilray.models.exported import MODEL_CARD, MODEL_RECORD, DataCounts, ModelRecord, Score, SeenRelease
from veilray.models.weights import WEIGHTS_FILE, load_weights, model_of, save_weights
from veilray.training.config import RunConfig
from veilray.training.run import RunFolder

_SEEDS = ("seed", "noise_seed")


def export_model(run: Path, out: Path) -> ModelRecord:
    """Write the model of a run folder into the existing empty folder `out`.

    The weights are read and written again, so that their file's header holds the network's configuration and the noise,
    and nothing else. Raises RunError where the run has no weights or is damaged.
    """
    folder = RunFolder(run)
    config = folder.config()
    folder.check_best_weights()
    weights = load_weights(folder.best_weights, expected=config.model)
    network = model_of(weights)
    save_weights(out / WEIGHTS_FILE, network, noise=config.noise, recorruption=weights.recorruption)
    record = ModelRecord(
        veilray=veilray.__version__,
        weights_sha256=sha256_file(out / WEIGHTS_FILE),
        model=config.model,
        noise=config.noise,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        epochs=config.train.epochs,
        loss=config.train.loss if config.train.objective in ("auto", "supervised") else config.train.objective,
        data=_counts(folder),
        score=_score(run),
        release=_release(folder),
        config=_training(config),
    )
    write_json(out / MODEL_RECORD, record.model_dump(mode="json"))
    write_text(out / MODEL_CARD, model_card(record))
    return record


def training_digest(run: Path) -> str:
    """The digest of what a run was trained on, for the ledger alone; RunError where the run does not say it."""
    digest = RunFolder(run).environment().get("cohort_digest")
    if not isinstance(digest, str) or not digest:
        raise RunError(f"{run / 'environment.json'} does not say on which data it trained")
    return digest


def _training(config: RunConfig) -> dict[str, Any]:
    """The configuration as it may leave, without what this training had no use for."""
    kept = {name: _choices(value) for name, value in config if name not in ("model", "noise", *_SEEDS)}
    for name in config.train.unused():
        kept["train"].pop(name, None)
    return kept


def _choices(value: Any) -> Any:
    """Of a part of a configuration the numbers and choices but the seeds: text that is free may be a path, and stays.

    Who knows the seeds can draw the noise and the order of the training again, and the split from guessed ids.
    """
    if not isinstance(value, BaseModel):
        return value
    kept = {}
    for name, field in type(value).model_fields.items():
        inner = getattr(value, name)
        if name in _SEEDS:
            continue
        if not isinstance(inner, str) or get_origin(field.annotation) is Literal:
            kept[name] = _choices(inner)
    return kept


def _release(folder: RunFolder) -> SeenRelease | None:
    environment = folder.environment()
    if environment.get("release_id") is None:
        return None
    try:
        return SeenRelease(release_id=environment["release_id"], digest=environment["cohort_digest"])
    except (KeyError, ValidationError):
        raise RunError(f"{folder.path / 'environment.json'} does not say on which release it trained") from None


def _counts(folder: RunFolder) -> DataCounts:
    environment = folder.environment()
    names = {
        "train_images": "n_train",
        "train_patients": "n_train_patients",
        "validation_images": "n_validation",
        "validation_patients": "n_validation_patients",
    }
    public = {"public_images": environment.get("n_public", 0)}
    try:
        return DataCounts.model_validate(
            {**{field: environment[key] for field, key in names.items()}, **public}, strict=True
        )
    except (KeyError, TypeError, ValidationError):
        raise RunError(f"{folder.path / 'environment.json'} does not say on how much data it trained") from None


def _score(run: Path) -> Score | None:
    if not (run / SUMMARY).is_file():
        return None
    summary = read_summary(run)
    means: dict[str, dict[str, Interval]] = {}
    for metric in ("psnr", "ssim"):
        found = {method: summary.methods.get(method, {}).get(metric) for method in (NOISY, MODEL)}
        means[metric] = {method: interval for method, interval in found.items() if interval is not None}
    if any(len(intervals) < 2 for intervals in means.values()):
        return None
    return Score.model_validate(
        {
            "images": summary.n_images,
            "patients": summary.n_patients,
            "split": summary.split,
            "confidence": summary.confidence,
            **means,
        }
    )


def model_card(record: ModelRecord) -> str:
    """`MODEL_CARD.md`: what the model is for, what it has seen, and what it must not be used for."""
    noise, data = record.noise, record.data
    clamp = "clamped to [0, 1]" if noise.clip else "not clamped"
    return f"""# Model card

**Not a medical device.** What it puts out is an estimate: it can remove findings and invent structures. For research,
not for diagnosis.

## What it is

A {record.model.name} of width {record.model.width} and depth {record.model.depth}, {record.parameters:,} parameters, \
trained by Veilray {record.veilray}
over at most {record.epochs} epochs with the {record.loss} loss. `{WEIGHTS_FILE}` has SHA-256 `{record.weights_sha256}`.

## Intended use

It takes Gaussian noise of mean {noise.mean_text} and standard deviation {noise.std_text} (pixels in [0, 1], {clamp})
from chest radiographs like those it was trained on: `veilray denoise IMAGES --model FOLDER --out OUT`.

## Data

Trained on {_source(record)}{data.train_images:,} images of {data.train_patients:,} patients{_public(data)}; the \
weights were chosen by {data.validation_images:,} images of {data.validation_patients:,} patients.
The images themselves, their names and those of the patients are not in this folder.

## Scores

{_score_text(record.score)}

## Limits

- Other noise, other body parts, other devices and other populations than it was trained on: not measured here.
- A high PSNR is not diagnostic equivalence.
- What a network remembers of its training images was not measured; treat the weights as data of that site.
"""


def _public(data: DataCounts) -> str:
    return f" and {data.public_images:,} clean public images" if data.public_images else ""


def _source(record: ModelRecord) -> str:
    return f"release {record.release.release_id}, " if record.release is not None else ""


def _score_text(score: Score | None) -> str:
    if score is None:
        return "Not measured."
    lines = [
        f"On {score.images:,} {score.split} images of {score.patients:,} patients of the same source; in brackets the "
        f"{score.confidence:.0%} interval, clustered by patient.",
        "",
        "| | PSNR, dB | SSIM |",
        "|---|---|---|",
    ]
    names: dict[Literal["noisy", "model"], str] = {"noisy": "noisy", "model": "denoised"}
    for method, name in names.items():
        psnr, ssim = score.psnr[method], score.ssim[method]
        lines.append(
            f"| {name} | {psnr.mean:.2f} ({psnr.low:.2f} to {psnr.high:.2f}) "
            f"| {ssim.mean:.3f} ({ssim.low:.3f} to {ssim.high:.3f}) |"
        )
    return "\n".join(lines)
