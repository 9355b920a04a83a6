"""Figures of a reconstruction, image by image, as one record."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilray.images.radiograph import FloatImage
from veilray.metrics.psnr import psnr
from veilray.privacy.catalogue import RECONSTRUCTION
from veilray.privacy.data import AuditData
from veilray.privacy.intervals import over_patients
from veilray.privacy.results import AttackResult, NoiseWay, Skipped


def score_record(
    data: AuditData,
    variant: str,
    rows: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    *,
    metric: str,
    attacker: str,
    unit: Literal["", "share", "dB"],
    noise: Literal["", NoiseWay] = "",
    count: int | None = None,
    notes: tuple[str, ...] = (),
    chance: float | None = None,
    curve: tuple[tuple[float, float], ...] | None = None,
    seeds: tuple[int, ...] = (),
) -> AttackResult | Skipped:
    """The record of a score of each of some images, (n,); a share is a success, from 0 to 1.

    Images that came back to the last bit, whose PSNR is infinite, count as the best of the others.
    """
    exact = ~np.isfinite(values)
    if exact.all():
        reason = f"{metric} of {attacker} is infinite: it gives the originals back to the last bit"
        return Skipped(attack=RECONSTRUCTION, variant=variant, reason=reason)
    if exact.any():
        values = np.where(exact, values[~exact].max(), values)
        notes = (*notes, f"{int(exact.sum())} images came back to the last bit; they count as the best of the others")
    owners = [data.patient_ids[row] for row in rows.tolist()]
    value, low, high = over_patients(values, owners, share=unit == "share")
    return AttackResult(
        attack=RECONSTRUCTION,
        attacker=attacker,
        variant=variant,
        metric=metric,
        unit=unit,
        noise=noise,
        count=count,
        value=value,
        low=low,
        high=high,
        chance=chance,
        n_images=len(rows),
        n_patients=len(set(owners)),
        notes=notes,
        curve=curve,
        seeds=seeds,
    )


def psnr_of(images: FloatImage, targets: FloatImage) -> npt.NDArray[np.float64]:
    """PSNR of each image in dB: (N, H, W) twice -> (N,)."""
    scores: npt.NDArray[np.float64] = psnr(as_batch(images), as_batch(targets), data_range=1.0).numpy()
    return scores


def as_batch(images: FloatImage) -> Tensor:
    """(N, H, W) -> (N, 1, H, W), float32."""
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None]
