"""What returns of an evaluation: means with intervals and counts, by allow-list; nothing that speaks of one image.

Scores by image, ids, pictures, paths, digests of a cohort and times stay. Figures are rounded, and there are none on
few patients, since a model is a question that its sender chose.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

import veilray
from veilray.errors import RefusedError, RunError
from veilray.evaluation.baselines.methods import METHODS
from veilray.evaluation.results import METRICS, MODEL, NOISY, Summary, read_summary
from veilray.files import write_json, write_text
from veilray.metrics.interval import Interval
from veilray.obfuscation.config import NoiseConfig

EVALUATION_RECORD = "evaluation.json"
EVALUATION_PAGE = "EVALUATION.md"
EVALUATION_FILES = (EVALUATION_RECORD, EVALUATION_PAGE)
"""All that returns of an evaluation."""

FEWEST_PATIENTS = 10
"""Below it nothing returns: the ends of an interval by resampling patients come close to the scores of single ones."""

_DECIMALS = {"psnr": 2, "psnr_unclamped": 2, "ssim": 3, "ssim_3x3": 3, "lpips": 3}
_TITLES = {NOISY: "noisy", MODEL: "the model"}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EvaluationRecord(_Record):
    """`evaluation.json`."""

    schema_version: Literal[1] = 1
    veilray: str
    """Version that sealed."""
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the weights that were evaluated."""
    release_id: str | None = Field(pattern=r"^[0-9a-f]{32}$")
    """The release whose noisy images were restored; None where noise was drawn on images of a cohort."""
    split: Literal["train", "validation", "test"]
    images: int = Field(ge=1)
    patients: int = Field(ge=FEWEST_PATIENTS)
    noise: NoiseConfig
    confidence: float = Field(gt=0.0, lt=1.0)
    scores: dict[str, dict[str, Interval]]
    """method -> metric -> mean over the images with its interval, clustered by patient; rounded."""


def export_evaluation(folder: Path, out: Path) -> tuple[EvaluationRecord, Summary]:
    """Write what may return of the evaluation in `folder` into the existing empty folder `out`.

    Raises RunError where there is no evaluation, it is damaged, or it does not say which weights it is of; RefusedError
    where it is on fewer patients than FEWEST_PATIENTS.
    """
    summary = read_summary(folder)
    if not summary.weights_sha256:
        raise RunError(f"{folder} does not say which weights it evaluated; evaluate again")
    if summary.n_patients < FEWEST_PATIENTS:
        raise RefusedError(
            f"the evaluation in {folder} is on {summary.n_patients} patients; nothing returns of fewer than "
            f"{FEWEST_PATIENTS}"
        )
    record = EvaluationRecord.model_validate(
        {
            "veilray": veilray.__version__,
            "weights_sha256": summary.weights_sha256,
            "release_id": summary.release_id,
            "split": summary.split,
            "images": summary.n_images,
            "patients": summary.n_patients,
            "noise": summary.noise,
            "confidence": summary.confidence,
            "scores": _scores(summary),
        }
    )
    write_json(out / EVALUATION_RECORD, record.model_dump(mode="json"))
    write_text(out / EVALUATION_PAGE, evaluation_page(record))
    return record, summary


def _scores(summary: Summary) -> dict[str, dict[str, Interval]]:
    """The rounded means of every method that Veilray knows by name, as far as they were computed."""
    found: dict[str, dict[str, Interval]] = {}
    for method, metrics in summary.methods.items():
        if method in _TITLES or method in METHODS:
            known = {name: metrics.get(name) for name in METRICS}
            found[method] = {name: _rounded(name, value) for name, value in known.items() if value is not None}
    return found


def _rounded(metric: str, interval: Interval) -> Interval:
    digits = _DECIMALS[metric]
    return Interval(**{end: round(value, digits) for end, value in interval.model_dump().items()})


def evaluation_page(record: EvaluationRecord) -> str:
    """`EVALUATION.md`: the same for a reader."""
    noise = record.noise
    clamp = "clamped to [0, 1]" if noise.clip else "not clamped"
    of = f"the noisy images of release {record.release_id}" if record.release_id else "images of a cohort, made noisy"
    return f"""# Evaluation at Site One

Weights with SHA-256 `{record.weights_sha256}`,
on {of}: {record.images:,} images of {record.patients:,} patients, the {record.split} set.
Noise of mean {noise.mean_text} and standard deviation {noise.std_text}, {clamp}.

Means over the images against the originals, which stay at Site One; in brackets the {record.confidence:.0%} interval, \
clustered by patient.

{_table(record)}

A high PSNR is not diagnostic equivalence. Not a medical device.
"""


def _table(record: EvaluationRecord) -> str:
    names = [name for name in METRICS if any(name in metrics for metrics in record.scores.values())]
    titles = {"psnr": "PSNR, dB", "ssim": "SSIM", "ssim_3x3": "SSIM, 3 x 3", "lpips": "LPIPS"}
    lines = [f"| | {' | '.join(titles.get(name, 'PSNR, dB, not clamped') for name in names)} |"]
    lines.append("|---" * (1 + len(names)) + "|")
    for method, metrics in record.scores.items():
        cells = [_cell(metrics.get(name), _DECIMALS[name]) for name in names]
        lines.append(f"| {_TITLES.get(method, method)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return ""
    return f"{interval.mean:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
