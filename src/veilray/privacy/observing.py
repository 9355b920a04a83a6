"""The features of a variant's images, computed once for all attacks that look at them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from veilray.privacy.catalogue import GRADIENTS, THUMBNAILS
from veilray.privacy.data import AuditData, Progress, Variant
from veilray.privacy.extent import Extent
from veilray.privacy.features import (
    AlexNetFeatures,
    Bank,
    banks,
    cosine,
    gradient_histograms,
    registered_correlation,
    similarities,
    thumbnails,
)
from veilray.privacy.pairs import Codes, whole_patients
from veilray.privacy.verification import Looks

_KEPT = 8


class Observer:
    """What the attackers on images share: AlexNet, where its weights are given, and what was computed lately.

    `backbone` is a file of torchvision's AlexNet; without it the learned attackers look at thumbnails and gradients
    alone. Raises DataError where the file is none.
    """

    def __init__(self, backbone: Path | None = None) -> None:
        self._alexnet = None if backbone is None else AlexNetFeatures.read(backbone)
        self._kept: OrderedDict[str, Looks] = OrderedDict()

    @property
    def weakened(self) -> str:
        """What the learned attackers lack; empty where they look through AlexNet."""
        return "" if self._alexnet is not None else "without AlexNet's features, whose weights were not given"

    def looks(self, data: AuditData, variant: Variant, rows: Codes, *, extent: Extent, progress: Progress) -> Looks:
        """The features of the variant's first draw of `rows`, from memory where they were computed lately."""
        kinds = banks(self._alexnet, fine=extent.fine_features)
        digest = hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes())
        digest.update("/".join((data.digest, variant.digest, variant.name, *kinds)).encode())
        key = digest.hexdigest()
        if key not in self._kept:
            progress("features of the images")
            self._kept[key] = _look(data, variant, rows, kinds)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]


def chosen_rows(data: AuditData, variant: Variant | None, *, extent: Extent, seed: int = 0) -> Codes:
    """Which of a variant's images are attacked, ascending, up to the extent's number; None stands for the originals."""
    rows = np.arange(len(data)) if variant is None else variant.available(data)
    return whole_patients(rows, data.patient_ids, most=extent.learned_images, seed=seed)


def _look(data: AuditData, variant: Variant, rows: Codes, kinds: dict[str, Bank]) -> Looks:
    small: list[npt.NDArray[np.float32]] = []
    gradients: list[npt.NDArray[np.float32]] = []

    def read(places: Codes) -> npt.NDArray[np.float32]:
        images = np.ascontiguousarray(variant.draw(rows[places], 0), dtype=np.float32)
        tensor = torch.from_numpy(images)
        small.append(thumbnails(tensor).numpy())
        gradients.append(gradient_histograms(tensor).numpy())
        return images

    learned = similarities(read, len(rows), kinds)
    floors = {
        THUMBNAILS: registered_correlation(np.concatenate(small)),
        GRADIENTS: cosine(np.concatenate(gradients)),
    }
    return Looks(learned=learned, floors=floors)
