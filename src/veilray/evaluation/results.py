"""Result files of a run's evaluation: what evaluate writes, and compare and the report read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from veilray.errors import RunError
from veilray.files import read_json, replacing, write_json
from veilray.metrics.interval import Interval
from veilray.obfuscation.config import NoiseConfig

PER_IMAGE = Path("evaluation/per_image.csv")
SUMMARY = Path("evaluation/summary.json")
BASELINES = Path("evaluation/baselines.json")
"""How the strength of each classical method was chosen; only where some were scored."""

NOISY = "noisy"
"""Method of the noisy input itself."""
MODEL = "model"
"""Method of the run's own network."""


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """Scores of one method on one image; None where a metric was not computed."""

    image_id: str
    patient_id: str
    method: str
    psnr: float
    """Peak signal-to-noise ratio in dB, peak 1, output clamped to [0, 1]."""
    ssim: float
    """Structural similarity, 11x11 Gaussian window."""
    ssim_3x3: float
    """Structural similarity, uniform 3x3 window, as in the paper."""
    lpips: float | None
    """LPIPS, AlexNet, v0.1."""
    psnr_unclamped: float | None = None
    """PSNR of the raw output, as in the paper; only under the paper's protocol."""


FEW_PATIENTS = 30
"""Below so many a bootstrap over patients gives intervals that tend to be too narrow."""

METRICS: tuple[str, ...] = ("psnr", "ssim", "ssim_3x3", "lpips", "psnr_unclamped")


class PairedDifference(Interval):
    """The model's scores minus a method's on the same images, with the interval of the mean."""

    p_value: float
    """Wilcoxon's signed-rank test on the patients' mean differences, two-sided, not corrected for testing several."""
    share_won: float
    """Share of images on which the model is better; a tie counts half."""


class Summary(BaseModel):
    """`evaluation/summary.json`: means over the images with intervals clustered by patient."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    split: str
    n_images: int
    n_patients: int
    cohort: str
    """Folder of the cohort, as it was named."""
    cohort_digest: str
    noise: NoiseConfig
    test_noise_seed: int | None
    """Seed of the noise that was drawn for the evaluation; None where the images came with theirs, from a release."""
    confidence: float
    resamples: int
    bootstrap_seed: int
    methods: dict[str, dict[str, Interval | None]]
    """method -> metric -> interval; None where it was not computed."""
    notes: list[str]
    """What a reader must know, such as why LPIPS was not computed."""
    seconds_per_image: dict[str, float]
    """Inference seconds an image, by method: of the network on `device`, of a classical method in a process of one
    thread."""
    core_seconds_per_image: dict[str, float] = {}
    """Processor seconds an image, by method: what one core would take. Not of a network on a GPU."""
    model_minus: dict[str, dict[str, PairedDifference | None]] = {}
    """method -> metric -> the model's advantage over it on the same images, for every classical method; None where it
    was not computed."""
    model: str = ""
    """What was evaluated, where it is not the run whose folder holds this file: a run folder, from here if it is
    relative, or `shipped:NAME`."""
    weights_sha256: str = ""
    """SHA-256 of the file of weights that was evaluated; empty in what an older Veilray wrote."""
    release_id: str | None = None
    """The release whose noisy images were restored; None where the noise was drawn for the evaluation."""
    device: str
    """Hardware that evaluated."""


def no_mean(summary: Summary) -> str:
    """Why PSNR has no mean in a summary; empty where it has one."""
    if all(metrics.get("psnr") is not None for metrics in summary.methods.values()):
        return ""
    return next((note for note in summary.notes if note.startswith("No mean of psnr")), "PSNR has no mean")


def write_results(
    run: Path, summary: Summary, scores: Sequence[ImageScore], *, baselines: dict[str, Any] | None = None
) -> None:
    """Write `evaluation/per_image.csv` and `evaluation/summary.json` of a run: both, or none on a full disk.

    `baselines` goes into `evaluation/baselines.json`; without it one of an earlier evaluation is removed.
    """
    names = [field.name for field in fields(ImageScore)]
    with replacing(run / PER_IMAGE) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        for score in scores:
            writer.writerow(["" if getattr(score, name) is None else getattr(score, name) for name in names])
        stream.flush()  # while the old files still stand
        if baselines is not None:
            write_json(run / BASELINES, baselines)
        write_json(run / SUMMARY, summary.model_dump(mode="json"))
    if baselines is None:
        (run / BASELINES).unlink(missing_ok=True)


def _not_evaluated(run: Path) -> RunError:
    if not run.is_dir():
        return RunError(f"{run} does not exist")
    return RunError(f"{run} has not been evaluated; run: veilray evaluate {run} --data COHORT")


def read_summary(run: Path) -> Summary:
    """The summary of a run's evaluation; RunError where there is none or it is damaged."""
    if not (run / SUMMARY).is_file():
        raise _not_evaluated(run)
    try:
        return Summary.model_validate(read_json(run / SUMMARY))
    except ValidationError as error:
        raise RunError(f"{run / SUMMARY} does not fit its schema ({error.error_count()} faults)") from None


def read_tuning(run: Path) -> dict[str, tuple[Any, Any]]:
    """The strength of each classical method and the images it was chosen on; empty where nobody says which.

    RunError where the file that says so is damaged.
    """
    path = run / BASELINES
    if not path.is_file():
        return {}
    found = read_json(path)
    try:
        return {name: (one["strength"], found["tuning_images"]) for name, one in found["methods"].items()}
    except (KeyError, TypeError, AttributeError):
        raise RunError(f"{path} is damaged; evaluate the run again") from None


def read_scores(run: Path) -> list[ImageScore]:
    """The per-image scores of a run's evaluation; RunError where there are none or they are damaged."""
    path = run / PER_IMAGE
    if not path.is_file():
        raise _not_evaluated(run)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [_score(row) for row in csv.DictReader(stream)]
    except (KeyError, ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error})") from None


def _score(row: dict[str, str]) -> ImageScore:
    def optional(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    return ImageScore(
        image_id=row["image_id"],
        patient_id=row["patient_id"],
        method=row["method"],
        psnr=float(row["psnr"]),
        ssim=float(row["ssim"]),
        ssim_3x3=float(row["ssim_3x3"]),
        lpips=optional("lpips"),
        psnr_unclamped=optional("psnr_unclamped"),
    )
