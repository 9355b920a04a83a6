"""Images whose truth is known: where a patient can be recognised, and where nobody can be."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from veilray.images.phantom import chest_phantom
from veilray.privacy.data import AuditData, Labels, Rows, Variant, no_labels

Images = npt.NDArray[np.float32]

SIDE = 40


@functools.cache
def _phantom(patient: int) -> Images:
    return chest_phantom(patient=patient, follow_up=0, seed=5, size=SIDE)


def phantoms(patients: int) -> Images:
    """One small phantom of each patient, (P, 40, 40)."""
    return np.stack([_phantom(patient) for patient in range(patients)])


def recognisable(patients: int, *, each: int, seed: int = 0) -> Images:
    """`each` images of every patient that differ by a pixel's shift, contrast and some noise: (P * each, 40, 40)."""
    rng = np.random.default_rng(seed)
    images = []
    for image in phantoms(patients):
        for _ in range(each):
            moved = np.roll(image, tuple(rng.integers(-1, 2, 2)), axis=(0, 1))
            images.append(0.1 + rng.uniform(0.6, 0.8) * moved + rng.normal(0, 0.004, moved.shape))
    return np.clip(np.stack(images), 0, 1).astype(np.float32)


def anonymous(patients: int, *, each: int) -> Images:
    """As many images of the same kind, every one of somebody else: nobody can be recognised by them."""
    return recognisable(patients * each, each=1)


def audit_data(images: Images, patients: npt.NDArray[np.int64], labels: Labels | None = None) -> AuditData:
    """An audit's data of images in memory."""
    return AuditData(
        clean=lambda rows: images[rows],
        patient_ids=tuple(f"p{patient:04d}" for patient in patients),
        image_ids=tuple(f"i{row:04d}" for row in range(len(images))),
        labels=no_labels(len(images)) if labels is None else labels,
        size=(images.shape[1], images.shape[2]),
        digest=f"planted {images.sum()} {patients.tolist()}",
    )


def as_they_are(data: AuditData) -> Variant:
    """The clean variant."""

    def draw(rows: Rows, _: int) -> Images:
        return data.clean(rows)

    return Variant(name="original", kind="clean", draw=draw, digest=data.digest, draws=1)
