"""Reconstruction: how much of the original an attacker gets back from what was released."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilray.metrics.psnr import psnr
from veilray.metrics.ssim import ssim
from veilray.privacy.data import AuditData, Budget, Progress, Rows, Variant
from veilray.privacy.noise_trial import NoiseTrial
from veilray.privacy.results import AttackResult, Skipped
from veilray.privacy.scoring import RECONSTRUCTION, as_batch, score_record

NAME = RECONSTRUCTION

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""LPIPS: (N, 1, H, W) twice -> (N,)."""

_SCORED = {"quick": 48, "default": 400, "full": 100_000}
_TRIED = {"quick": 32, "default": 64, "full": 96}
_RELEASES = {"quick": (1, 2, 4, 8), "default": (1, 2, 4, 8, 16, 32), "full": (1, 2, 4, 8, 16, 32, 64)}
_SEEDS = {"quick": 1 << 12, "default": 1 << 16, "full": 1 << 20}
_BLOCK = 16
_SMALLEST_FOR_SSIM = 11


def run(
    data: AuditData,
    variants: Sequence[Variant],
    *,
    budget: Budget,
    seeds: Sequence[int],
    progress: Progress,
    perceptual: Perceptual | None = None,
) -> list[AttackResult | Skipped]:
    """Score each variant's images against their originals; for noise also what needs no network.

    `perceptual`: LPIPS, where its weights are at hand. Averaging, subtraction and guessing are tried on noise made for
    the audit at the variant's level, by Veilray's way and by the naive one: no such release need exist.
    """
    found: list[AttackResult | Skipped] = []
    for variant in variants:
        if variant.kind == "clean":
            continue  # there is nothing to reconstruct
        judged = variant.available(data) if variant.judged is None else np.array(variant.judged, dtype=np.int64)
        rows = _spread(judged, _SCORED[budget.effort])
        if not len(rows):
            found.append(Skipped(attack=NAME, variant=variant.name, reason="it has none of the images"))
            continue
        progress("fidelity")
        found += _fidelity(data, variant, rows, perceptual)
        if variant.kind == "noisy":
            found += _without_network(data, variant, budget=budget, seed=seeds[0], progress=progress)
    return found


def _fidelity(
    data: AuditData, variant: Variant, rows: npt.NDArray[np.int64], perceptual: Perceptual | None
) -> list[AttackResult | Skipped]:
    """PSNR, SSIM and LPIPS of the variant's images as they are, against the originals."""
    attacker = _restorer(variant)
    scores: dict[str, list[float]] = {"psnr": [], "ssim": [], "lpips": []}
    for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK)):
        output, target = (as_batch(images) for images in (variant.draw(block, 0), data.clean(block)))
        output = output.clamp(0.0, 1.0)
        scores["psnr"] += psnr(output, target, data_range=1.0).tolist()
        if min(data.size) >= _SMALLEST_FOR_SSIM:
            scores["ssim"] += ssim(output, target, data_range=1.0).tolist()
        if perceptual is not None:
            with torch.no_grad():
                scores["lpips"] += perceptual(output, target).tolist()
    found: list[AttackResult | Skipped] = []
    for metric, values in scores.items():
        if values:
            found.append(score_record(data, variant.name, rows, np.array(values), metric=metric, attacker=attacker))
        elif metric == "lpips" and variant.source:
            reason = "no LPIPS: name AlexNet's convolutions with --lpips-backbone"
            found.append(Skipped(attack=NAME, variant=variant.name, reason=reason))
    return found


def _restorer(variant: Variant) -> str:
    if variant.source:
        return "the denoiser" if variant.judged is None else "a network trained for it"
    return "none: the noisy image itself" if variant.is_noise else "none: the image itself"


def _without_network(
    data: AuditData, variant: Variant, *, budget: Budget, seed: int, progress: Progress
) -> list[AttackResult | Skipped]:
    rows = _spread(_one_each(data, variant.available(data)), _TRIED[budget.effort])
    trial = NoiseTrial(data, variant, rows, seed=seed)
    progress("averaging releases")
    found: list[AttackResult | Skipped] = [trial.average(_RELEASES[budget.effort], nested=False)]
    nested = trial.why_no_secret()
    if nested:
        found.append(Skipped(attack=NAME, variant=variant.name, reason=nested))
    else:
        found.append(trial.average(_RELEASES[budget.effort], nested=True))
    progress("subtracting two levels")
    found.append(trial.subtract(nested=False))
    if not nested:
        found.append(trial.subtract(nested=True))
    progress("guessing a seed")
    return [*found, *trial.guess(_SEEDS[budget.effort], nested=not nested)]


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
