"""Audit data of phantoms: follow-ups of one phantom patient share anatomy."""

from __future__ import annotations

import functools

import numpy as np

from veilray.images.phantom.render import chest_phantom
from veilray.images.radiograph import FloatImage
from veilray.privacy.data import AuditData, no_labels


@functools.cache
def _images(patients: int, follow_ups: int, size: int) -> FloatImage:
    drawn = [
        chest_phantom(patient=patient, follow_up=follow_up, seed=7, size=size)
        for patient in range(1, patients + 1)
        for follow_up in range(follow_ups)
    ]
    return np.rint(np.stack(drawn) * 255).astype(np.float32) / np.float32(255)


def phantom_data(patients: int, *, follow_ups: int = 1, size: int = 64) -> AuditData:
    """Phantoms of so many patients, rounded to 8 bits, without labels."""
    images = _images(patients, follow_ups, size)
    owners = tuple(f"patient {number}" for number in range(patients) for _ in range(follow_ups))
    return AuditData(
        clean=lambda rows: images[rows],
        patient_ids=owners,
        image_ids=tuple(f"image {number}" for number in range(len(images))),
        labels=no_labels(len(images)),
        size=(size, size),
        digest=f"phantoms {patients} {follow_ups} {size}",
    )
