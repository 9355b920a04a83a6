"""One phantom radiograph from its patient, follow-up and seed."""

from __future__ import annotations

import numpy as np

from veilray.errors import UsageError
from veilray.images.phantom.anatomy import Anatomy, draw_anatomy
from veilray.images.phantom.bones import draw_bones
from veilray.images.phantom.canvas import Field, texture
from veilray.images.phantom.devices import draw_devices
from veilray.images.phantom.display import collimate, develop, stamp
from veilray.images.phantom.study import Study, draw_study
from veilray.images.phantom.tissue import draw_chest
from veilray.images.phantom.vessels import draw_vessels
from veilray.images.radiograph import FloatImage

_WATER = 8.0
"""Attenuation of a frame width (40 cm) of water: 0.20 per cm, about 70 keV (NIST XCOM)."""


def chest_phantom(*, patient: int, follow_up: int, seed: int, size: int = 256) -> FloatImage:
    """A frontal chest radiograph of a patient who does not exist.

    Args:
        patient: number of the patient, 0 or more; the anatomy hangs on it and on `seed` alone.
        follow_up: number of the examination, 0 or more.
        seed: of the whole population, 0 or more.
        size: height and width in pixels; every size shows the same picture.

    Returns:
        (size, size), float32, [0, 1]; 0 is black. The patient's right is on the left, as radiographs are read.

    Raises:
        UsageError: a negative number, or a size below 16.
    """
    return phantom_of(*draw_patient(patient=patient, follow_up=follow_up, seed=seed), size=size)


def phantom_of(anatomy: Anatomy, study: Study, *, size: int = 256) -> FloatImage:
    """The radiograph of an anatomy in a study's circumstances, such as one of `draw_patient` with a nodule more.

    (size, size), float32, [0, 1]. Raises UsageError for a size below 16.
    """
    if size < 16:
        raise UsageError(f"a phantom needs at least 16 pixels a side, not {size}")
    grey = stamp(collimate(develop(_attenuation(anatomy, study, size), study), study), study)
    return np.clip(grey, 0, 1).astype(np.float32)


def draw_patient(*, patient: int, follow_up: int, seed: int) -> tuple[Anatomy, Study]:
    """The parameters of one radiograph: the anatomy hangs on `patient` and `seed`, the study on `follow_up` too."""
    if min(patient, follow_up, seed) < 0:
        raise UsageError(f"patient, follow-up and seed must be 0 or more, not {patient}, {follow_up} and {seed}")
    anatomy_rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(patient, 0)))
    anatomy = draw_anatomy(anatomy_rng)
    portable_share = float(anatomy_rng.choice([0.05, 0.9], p=[0.6, 0.4]))
    study_rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(patient, 1 + follow_up)))
    return anatomy, draw_study(study_rng, portable_share=portable_share)


def _attenuation(anatomy: Anatomy, study: Study, size: int) -> Field:
    """(size, size) natural logarithm of how much weaker the beam arrives."""
    canvas = study.to_patient(size)
    shift = (study.shift[0] / study.scale, study.shift[1] / study.scale)
    coarse = texture(np.random.default_rng(anatomy.texture_seed), size=size, slope=2.0, low=2, high=128, shift=shift)
    fine = texture(np.random.default_rng(study.seed), size=size, slope=0.6, low=8, high=128, shift=(0, 0))
    # Nothing in a body is drawn with a ruler: outlines waver by what the texture gives.
    canvas.x[...] += 0.0030 * coarse
    canvas.y[...] += 0.0030 * coarse[::-1, ::-1]
    chest = draw_chest(canvas, anatomy, study)
    vessels = draw_vessels(anatomy, study, size=size)
    aerated = np.minimum(chest.lung * 5, 1)
    water = chest.water + vessels * aerated * 2.4
    water *= 1 + 0.035 * coarse
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    total = _WATER * water + draw_bones(canvas, anatomy, study, cage=chest.cage) * np.minimum(water * 20, 1)
    total += draw_devices(canvas, study, size=size)
    total += study.grain * fine * (0.012 + 0.014 * aerated)
    tilted: Field = total + study.heel[0] * axis[None] + study.heel[1] * axis[:, None]
    return tilted
