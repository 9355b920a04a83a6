"""From attenuation to grey: scatter, the display curve, collimation, the side marker."""

from __future__ import annotations

import numpy as np

from veilray.images.phantom.canvas import Canvas, Field, step, tube
from veilray.images.phantom.study import Study

_LETTERS = {
    "L": (((-0.5, -1.0), (-0.5, 1.0)), ((-0.5, 1.0), (0.6, 1.0))),
    "R": (
        ((-0.5, -1.0), (-0.5, 1.0)),
        ((-0.5, -1.0), (0.2, -1.0)),
        ((0.2, -1.0), (0.6, -0.75)),
        ((0.6, -0.75), (0.6, -0.3)),
        ((0.6, -0.3), (0.2, -0.05)),
        ((0.2, -0.05), (-0.5, -0.05)),
        ((0.05, -0.05), (0.65, 1.0)),
    ),
}


def develop(attenuation: Field, study: Study) -> Field:
    """Grey values, 0 to 1, of an image of attenuation: the logarithm of the exposure through an S-shaped curve."""
    exposure = np.exp(-attenuation) + study.scatter
    density = -np.log(exposure * (1 / (1 + study.scatter)))
    ceiling = float(np.log((1 + study.scatter) / (np.exp(-5.0) + study.scatter)))
    grey = 1 / (1 + np.exp((study.centre - density) * (1 / study.latitude)))
    air = 1 / (1 + float(np.exp(study.centre / study.latitude)))
    top = 1 / (1 + float(np.exp((study.centre - ceiling) / study.latitude)))
    shown: Field = (grey - study.black * air) * (study.white / (top - study.black * air))
    return shown


def collimate(grey: Field, study: Study) -> Field:
    """Blacken what lies outside the collimated field."""
    size = grey.shape[0]
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    left, top, right, bottom = study.field
    soft = 0.006 + 1 / size
    lit = np.ones_like(grey)
    if max(left, top, -right, -bottom) > -0.5:
        x = axis[None] + study.field_turn * axis[:, None]
        y = axis[:, None] - study.field_turn * axis[None]
        for distance in (x - left, right - x, y - top, bottom - y):
            lit *= step(distance, soft)
    cut: Field = grey * lit
    return cut


def stamp(grey: Field, study: Study) -> Field:
    """Lay the lead letter L or R beside the patient, on the side that it names."""
    if not study.marker:
        return grey
    size = grey.shape[0]
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    side = -1 if study.marker == "R" else 1
    whole = Canvas(x=np.tile(axis, (size, 1)), y=np.tile(axis[:, None], (1, size)), pixel=1 / size)
    x, y = side * study.marker_place[0], study.marker_place[1]
    found = whole.near(left=x - 0.01, top=y - 0.01, right=x + 0.01, bottom=y + 0.01)
    if found is None:
        return grey
    part, place = found
    height = 0.018 if study.marker_disc else 0.022
    local = Canvas(x=(part.x - x) / height, y=(part.y - y) / height, pixel=part.pixel / height)
    strokes = [tube(local, start=a, end=b, radii=(0.20, 0.20)) for a, b in _LETTERS[study.marker]]
    ink = step(np.maximum.reduce(strokes), 1.5 * local.pixel)
    stamped = grey.copy()
    if study.marker_disc:
        radius = np.hypot(local.x, local.y)
        stamped[place] *= 1 - step(1.75 - radius, 1.5 * local.pixel)
        ink = np.maximum(ink, step(0.12 - np.abs(radius - 1.65), 1.5 * local.pixel))
    stamped[place] += (0.97 - stamped[place]) * ink
    return stamped
