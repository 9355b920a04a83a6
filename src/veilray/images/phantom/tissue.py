"""Soft tissue and air: how much water-like tissue the beam crosses at every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from veilray.images.phantom.anatomy import Anatomy
from veilray.images.phantom.canvas import Canvas, Curve, Field, ball, soft_root, step, tube
from veilray.images.phantom.study import Study

AIRLESS = 0.78
"""Share of a lung's volume that is air."""

_BODY_Y = (-0.70, -0.50, -0.44, -0.39, -0.35, -0.31, -0.27, -0.22, -0.15, -0.05, 0.1, 0.3, 0.7)
_BODY_HALF_WIDTH = Curve(
    _BODY_Y, (0.105, 0.108, 0.12, 0.155, 0.245, 0.365, 0.435, 0.455, 0.415, 0.375, 0.365, 0.355, 0.36)
)
_BODY_DEPTH = Curve(_BODY_Y, (0.26, 0.27, 0.28, 0.30, 0.34, 0.40, 0.45, 0.49, 0.53, 0.56, 0.58, 0.60, 0.60))
_FAT = Curve((-0.6, -0.4, -0.25, 0.1, 0.6), (0.4, 0.5, 0.9, 1.0, 1.25))
_CAGE_Y = (-0.44, -0.38, -0.34, -0.28, -0.20, -0.10, 0.0, 0.1, 0.2, 0.3, 0.5)
_CAGE_HALF_WIDTH = Curve(_CAGE_Y, (0.07, 0.110, 0.142, 0.190, 0.242, 0.290, 0.320, 0.338, 0.346, 0.340, 0.32))
_LUNG_DEPTH = Curve(_CAGE_Y, (0.06, 0.09, 0.13, 0.21, 0.29, 0.355, 0.395, 0.41, 0.41, 0.39, 0.37))
_MEDIASTINUM_HALF_WIDTH = Curve(
    (-0.40, -0.33, -0.27, -0.20, -0.10, 0.0, 0.10, 0.20), (0.050, 0.052, 0.051, 0.048, 0.044, 0.040, 0.046, 0.05)
)
_USUAL_DEPTH = 0.56
"""Of the trunk, in the tables above."""


@dataclass(frozen=True, kw_only=True)
class Chest:
    """Thicknesses in frame widths, (H, W) each."""

    water: Field
    """Tissue in the beam, lungs already counted by their density."""
    lung: Field
    """Aerated lung in the beam."""
    full_lung: Field
    """The same before heart, diaphragm and fluid displaced it."""
    cage: Field
    """Half the width of the rib cage at each pixel's height."""


def draw_chest(canvas: Canvas, anatomy: Anatomy, study: Study) -> Chest:
    """Trunk, arms, lungs, heart, great vessels, airways, diaphragm, findings."""
    cage = _CAGE_HALF_WIDTH(canvas.y) * (anatomy.width * (1 + 0.015 * study.breath))
    body = _body(canvas, anatomy, study)
    full = _full_lung(canvas, anatomy, study, cage)
    solid = _below_diaphragm(canvas, anatomy, study) + _mediastinal_organs(canvas, anatomy, study)
    room = full - solid
    lung = 0.5 * (room + np.sqrt(room * room + 1e-4)) * (full > 0)
    lung = np.minimum(lung, full)
    water = body - AIRLESS * lung
    water += _findings(canvas, study) * np.minimum(lung * 6, 1)
    water -= _airways(canvas, anatomy) + _gas(canvas, anatomy, study)
    return Chest(water=np.maximum(water, 0), lung=lung, full_lung=full, cage=cage)


def _body(canvas: Canvas, anatomy: Anatomy, study: Study) -> Field:
    """Trunk, neck, shoulders and arms, without lungs."""
    x, y = np.abs(canvas.x), canvas.y
    half = _BODY_HALF_WIDTH(y) * anatomy.width + _FAT(y) * anatomy.wall
    ratio = x / half
    depth = _BODY_DEPTH(y) * (anatomy.thickness / _USUAL_DEPTH)
    trunk = depth * soft_root(1 - ratio * ratio * ratio, 2 * canvas.pixel)
    arm = tube(
        Canvas(x=x, y=y, pixel=canvas.pixel),
        start=(0.415 * anatomy.width, -0.195),
        end=(0.41 * anatomy.width + 0.065 + anatomy.wall + study.arms, 0.42),
        radii=(0.084 + 0.5 * anatomy.wall, 0.058 + 0.45 * anatomy.wall),
    )
    radius = 0.075 + 0.5 * anatomy.wall
    limb = 2 * radius * soft_root(1 - np.square(1 - arm / radius), canvas.pixel / radius) * step(arm, canvas.pixel * 2)
    body = np.hypot(trunk, 0.85 * limb)
    if anatomy.breast > 0:
        body = body + _breasts(canvas, anatomy)
    return body


def _breasts(canvas: Canvas, anatomy: Anatomy) -> Field:
    """A breast thickens downward and ends in a curved fold."""
    x = np.abs(canvas.x)
    round_x, round_y = 0.135 + 0.2 * anatomy.breast, 0.12 + 0.3 * anatomy.breast
    dx = (x - 0.20 * anatomy.width) / round_x
    dy = (canvas.y - 0.09 - anatomy.breast_drop) / round_y
    inside = soft_root(1 - dx * dx - dy * dy, canvas.pixel / round_x * 3)
    thick: Field = anatomy.breast * inside * step(dy + 0.1, 1.9)
    return thick


def _full_lung(canvas: Canvas, anatomy: Anatomy, study: Study, cage: Field) -> Field:
    """Front-to-back extent of the pleural cavities: round at the sides, at the apex and along the mediastinum."""
    x, soft = np.abs(canvas.x), 2 * canvas.pixel
    lateral = soft_root(1 - np.square(x / cage), soft)
    border = _MEDIASTINUM_HALF_WIDTH(canvas.y) * (anatomy.mediastinum * (1.12 if study.portable else 1.0))
    inward = np.clip((x - border) * (1 / 0.075), -0.5, 1)
    medial = soft_root(1 - np.square(1 - inward), canvas.pixel / 0.05)
    aside = x - 0.098 * anatomy.width
    # Steeper towards the neck than towards the ribs, which bound the lung there themselves.
    top = -0.355 * anatomy.height + (4.5 - 2.0 * np.sign(aside)) * np.square(aside)
    down = np.clip((canvas.y - top) * (1 / 0.12), -0.5, 1)
    apex = soft_root(1 - np.square(1 - down), canvas.pixel / 0.08)
    depth = _LUNG_DEPTH(canvas.y) * (anatomy.thickness / _USUAL_DEPTH)
    inside = step(cage - x, soft) * step(x - border, soft) * step(canvas.y - top, soft)
    full: Field = depth * lateral * medial * apex * inside
    return full


def dome_height(x: Field, anatomy: Anatomy, study: Study) -> Field:
    """Height of the diaphragm at each x; the right dome stands higher than the left."""
    left = (x > 0).astype(np.float32)
    side = np.abs(x) / anatomy.width
    lateral = np.maximum(side - 0.165, 0) * (1 / 0.18)
    medial = np.maximum(0.165 - side, 0) * (1 / 0.165)
    base = 0.195 * anatomy.height + 0.03 * study.breath
    top = (base - anatomy.dome[0]) + left * (0.022 - anatomy.dome[1] + anatomy.dome[0])
    # The heart rests on the left dome, which falls little towards it.
    height: Field = top + 0.095 * lateral * lateral * np.sqrt(lateral) + (0.018 - 0.030 * left) * medial * medial
    return height


def _below_diaphragm(canvas: Canvas, anatomy: Anatomy, study: Study) -> Field:
    """Liver, spleen and pleural fluid that stand in the lungs' way."""
    total = np.zeros_like(canvas.x)
    found = canvas.near(left=-1.0, top=-0.25, right=1.0, bottom=0.8)
    if found is None:
        return total
    part, place = found
    below = part.y - dome_height(part.x, anatomy, study)
    organs = 0.95 * soft_root(np.clip(below, -0.05, 0.4), 0.5 * part.pixel)
    for side, fluid in zip((-1, 1), study.effusion, strict=True):
        if fluid > 0:
            # The meniscus: fluid climbs the chest wall.
            outward = np.clip(part.x * side * (1 / 0.33), 0, 1.2)
            rise = fluid * (1 + 0.9 * np.square(np.square(outward)))
            below = part.y + rise - (0.285 * anatomy.height + 0.03 * study.breath)
            depth = 1.3 * soft_root(np.clip(below, -0.05, 0.4), 0.02) * step(part.x * side, 0.1)
            organs = np.maximum(organs, depth)
    total[place] = organs
    return total


def _mediastinal_organs(canvas: Canvas, anatomy: Anatomy, study: Study) -> Field:
    """Heart, aorta, pulmonary trunk, superior vena cava: thickness that replaces lung."""
    total = np.zeros_like(canvas.x)
    found = canvas.near(left=-0.25, top=-0.30, right=0.33, bottom=0.35)
    if found is None:
        return total
    part, place = found
    size = anatomy.heart * (1.10 if study.portable else 1.0) * (1 - 0.03 * study.breath)
    sink = 0.026 * study.breath + 0.15 * (anatomy.height - 1)
    # The heart rests on the diaphragm: below its middle it goes on until the dome hides it.
    low = 0.165 + sink
    resting = Canvas(x=part.x, y=part.y - 0.35 * np.maximum(part.y - low, 0), pixel=part.pixel)
    ventricles = ball(
        resting, centre=(0.062, 0.140 + sink), radii=(0.172 * size, 0.108 * size), turn=anatomy.heart_turn
    )
    atrium = ball(resting, centre=(-0.026, 0.122 + sink), radii=(0.060 * size, 0.112 * size), turn=-0.12)
    heart = np.maximum(0.25 * size * ventricles, 0.20 * size * atrium)
    trunk = 0.12 * ball(part, centre=(0.046, -0.070 + sink / 2), radii=(0.038, 0.065), turn=-0.5)
    knob = 3.2 * anatomy.aorta * ball(part, centre=(0.040, -0.150), radii=(anatomy.aorta, anatomy.aorta * 1.12))
    descending = tube(part, start=(0.038, -0.14), end=(0.028, 0.30), radii=(anatomy.aorta * 0.75, 0.022))
    cava = tube(part, start=(-0.028, -0.30), end=(-0.030, 0.02), radii=(0.024 * anatomy.mediastinum, 0.028))
    left = 0.07 * soft_root(descending * (1 / 0.03), part.pixel / 0.03)
    right = 0.09 * soft_root(cava * (1 / 0.025), part.pixel / 0.025)
    total[place] = np.maximum.reduce([heart, trunk, knob]) + np.maximum(left, right)
    return total


def _airways(canvas: Canvas, anatomy: Anatomy) -> Field:
    """Air in the trachea and main bronchi."""
    total = np.zeros_like(canvas.x)
    found = canvas.near(left=-0.15, top=-0.7, right=0.15, bottom=0.05)
    if found is None:
        return total
    part, place = found
    forks = (-0.006, -0.135)
    pipes = (
        tube(part, start=(0.0, -0.65), end=forks, radii=(0.0235, 0.0225)),
        tube(part, start=forks, end=(-0.062, -0.062), radii=(0.0165, 0.011)),
        tube(part, start=forks, end=(0.080, -0.070), radii=(0.0150, 0.009)),
    )
    inside = np.maximum.reduce(pipes)
    total[place] = 0.062 * soft_root(inside * (1 / 0.022), part.pixel / 0.02)
    return total


def _gas(canvas: Canvas, anatomy: Anatomy, study: Study) -> Field:
    """The gastric bubble: flat below when upright, under the left dome."""
    total = np.zeros_like(canvas.x)
    found = canvas.near(left=0.0, top=0.0, right=0.35, bottom=0.45)
    if study.gas <= 0 or found is None:
        return total
    part, place = found
    x = 0.165 * anatomy.width
    y = float(dome_height(np.array([x], dtype=np.float32), anatomy, study)[0]) + 0.022 + study.gas
    bubble = ball(part, centre=(x, y), radii=(1.7 * study.gas, study.gas), turn=0.15)
    if not study.portable:
        bubble = bubble * step(y + 0.45 * study.gas - part.y, 0.012 + part.pixel)
    total[place] = 2.2 * study.gas * bubble
    return total


def _findings(canvas: Canvas, study: Study) -> Field:
    """Nodules and infiltrates."""
    total = np.zeros_like(canvas.x)
    for blob in study.blobs:
        reach = blob.radius * (1 if blob.solid else 2.5)
        found = canvas.near(left=blob.x - reach, top=blob.y - reach, right=blob.x + reach, bottom=blob.y + reach)
        if found is None:
            continue
        part, place = found
        if blob.solid:
            total[place] += blob.depth * ball(part, centre=(blob.x, blob.y), radii=(blob.radius, blob.radius * 0.9))
        else:
            square = np.square(part.x - blob.x) + np.square(part.y - blob.y)
            total[place] += blob.depth * np.exp(square * (-1 / blob.radius**2))
    return total
