"""Reconstruction: how much of the original an attacker gets back from what was released."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilray.metrics.psnr import psnr
from veilray.metrics.ssim import ssim
from veilray.privacy.catalogue import NOBODY, NOBODY_NOISY, RECONSTRUCTION
from veilray.privacy.data import AuditData, Progress, Rows, Variant, drawn_numbers, drawn_seeds, drawn_words
from veilray.privacy.extent import Extent
from veilray.privacy.noise_trial import NoiseTrial
from veilray.privacy.results import AttackResult, Skipped
from veilray.privacy.scoring import as_batch, score_record

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""LPIPS: (N, 1, H, W) twice -> (N,)."""

_BLOCK = 16
_SMALLEST_FOR_SSIM = 11


def run(
    data: AuditData,
    variant: Variant,
    *,
    extent: Extent,
    seeds: Sequence[int],
    progress: Progress,
    perceptual: Perceptual | None = None,
) -> list[AttackResult | Skipped]:
    """Score a variant's images against their originals; for noise also what needs no network.

    `perceptual`: LPIPS, where its weights are at hand. Averaging, subtraction and guessing are tried on noise made for
    the audit at the variant's level, by Veilray's way and by the naive one: no such release need exist. Noise that is
    made for the audit is drawn anew for each seed; a release has one draw.
    """
    if variant.kind == "clean":
        return []  # there is nothing to reconstruct
    judged = variant.available(data)
    if variant.judged is not None:
        judged = np.intersect1d(judged, np.array(variant.judged, dtype=np.int64))
    rows = _spread(judged, extent.scored)
    if not len(rows):
        return [Skipped(attack=RECONSTRUCTION, variant=variant.name, reason="it has none of the images")]
    progress("fidelity")
    found = _fidelity(data, variant, rows, seeds, perceptual)
    if variant.kind == "noisy":
        found += _without_network(data, variant, extent=extent, seeds=seeds, progress=progress)
    return found


def _fidelity(
    data: AuditData,
    variant: Variant,
    rows: npt.NDArray[np.int64],
    seeds: Sequence[int],
    perceptual: Perceptual | None,
) -> list[AttackResult | Skipped]:
    """PSNR, SSIM and LPIPS of the variant's images as they are, against the originals."""
    numbers = drawn_numbers(variant, seeds)
    drawn = [_scores(data, variant, rows, number, perceptual) for number in numbers]
    notes = drawn_words(variant, numbers)
    if variant.judged is not None:
        notes = (*notes, "of patients on whom no network of the audit was trained")
    found: list[AttackResult | Skipped] = [
        score_record(
            data,
            variant.name,
            rows,
            np.mean([of[metric] for of in drawn], axis=0),
            metric=metric,
            unit="dB" if metric == "psnr" else "",
            attacker=_restorer(variant),
            notes=notes,
            seeds=drawn_seeds(variant, seeds),
        )
        for metric in drawn[0]
    ]
    if perceptual is None and variant.source:
        reason = "no LPIPS: name AlexNet's convolutions with --lpips-backbone"
        found.append(Skipped(attack=RECONSTRUCTION, variant=variant.name, reason=reason))
    return found


def _scores(
    data: AuditData, variant: Variant, rows: npt.NDArray[np.int64], number: int, perceptual: Perceptual | None
) -> dict[str, list[float]]:
    """Each metric that can be had of one draw, (n,) values each."""
    scores: dict[str, list[float]] = {"psnr": [], "ssim": [], "lpips": []}
    for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK)):
        output, target = (as_batch(images) for images in (variant.draw(block, number), data.clean(block)))
        output = output.clamp(0.0, 1.0)
        scores["psnr"] += psnr(output, target, data_range=1.0).tolist()
        if min(data.size) >= _SMALLEST_FOR_SSIM:
            scores["ssim"] += ssim(output, target, data_range=1.0).tolist()
        if perceptual is not None:
            with torch.no_grad():
                scores["lpips"] += perceptual(output, target).tolist()
    return {metric: values for metric, values in scores.items() if values}


def _restorer(variant: Variant) -> str:
    return variant.restorer or (NOBODY_NOISY if variant.is_noise else NOBODY)


def _without_network(
    data: AuditData, variant: Variant, *, extent: Extent, seeds: Sequence[int], progress: Progress
) -> list[AttackResult | Skipped]:
    rows = _spread(_one_each(data, variant.available(data)), extent.tried)
    trial = NoiseTrial(data, variant, rows, seeds=seeds)
    progress("averaging releases")
    found: list[AttackResult | Skipped] = [trial.average(extent.releases, nested=False)]
    without = trial.why_no_secret()
    if without:
        found.append(Skipped(attack=RECONSTRUCTION, variant=variant.name, reason=without))
    else:
        found.append(trial.average(extent.releases, nested=True))
    progress("subtracting two levels")
    found.append(trial.subtract(nested=False))
    if not without:
        found.append(trial.subtract(nested=True))
    progress("guessing a seed")
    return [*found, *trial.guess(extent.guessed, nested=not without)]


def _spread(rows: Rows, most: int) -> npt.NDArray[np.int64]:
    """At most so many rows, evenly over all."""
    kept = np.asarray(rows, dtype=np.int64)
    if len(kept) <= most:
        return kept
    return kept[np.unique(np.linspace(0, len(kept) - 1, most).astype(np.int64))]


def _one_each(data: AuditData, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first image of each patient: for noise alone it does not matter which, and patients are what counts."""
    first: dict[str, int] = {}
    for row in rows.tolist():
        first.setdefault(data.patient_ids[row], row)
    return np.array(sorted(first.values()), dtype=np.int64)
