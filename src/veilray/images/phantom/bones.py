"""Ribs, spine, clavicles, scapulae, arms: attenuation by bone beyond that of the tissue it replaces."""

from __future__ import annotations

import numpy as np

from veilray.images.phantom.anatomy import Anatomy
from veilray.images.phantom.canvas import Canvas, Curve, Field, soft_root, step, tube
from veilray.images.phantom.study import Study

_FIRST_RIB = 7
_RIB_FALL = Curve((-0.4, -0.25, 0.0, 0.2, 0.5), (0.55, 0.85, 1.05, 1.15, 1.15))
_RIB_SPACING = Curve((-0.4, 0.3), (0.050, 0.070))
_RIB_SIZE = Curve((1, 3, 9, 12), (0.85, 1.0, 1.0, 0.7))
_CARTILAGE = Curve((1, 2, 4, 6, 8, 10), (0.42, 0.42, 0.46, 0.50, 0.62, 0.85))
"""Where the bony part of each rib ends in front, as a share of the rib cage's half width."""
_SPINE_HALF_WIDTH = Curve((-0.6, -0.34, -0.2, 0.2, 0.6), (0.034, 0.036, 0.036, 0.043, 0.050))
_VERTEBRA_HEIGHT = Curve((-0.6, -0.335, -0.3, 0.3), (0.038, 0.040, 0.050, 0.075))
_SPINE_DENSITY = Curve((-0.5, -0.1), (0.45, 0.85))
_CLAVICLE_RADIUS = Curve((0, 0.12, 0.4, 0.75, 1.0), (0.0195, 0.0145, 0.0115, 0.0125, 0.0155))


def draw_bones(canvas: Canvas, anatomy: Anatomy, study: Study, *, cage: Field) -> Field:
    """(H, W) attenuation (natural logarithm) by all bones; `cage` is half the rib cage's width at each pixel."""
    total = _ribs(canvas, anatomy, study, cage)
    for left, right, top, bottom, draw in (
        (-0.10, 0.10, -0.70, 0.70, _spine),
        (-0.45, 0.45, -0.42, -0.12, _clavicles),
    ):
        found = canvas.near(left=left, top=top, right=right, bottom=bottom)
        if found is not None:
            total[found[1]] += draw(found[0], anatomy, study)
    for side in (-1, 1):
        mirrored = Canvas(x=canvas.x * side, y=canvas.y, pixel=canvas.pixel)
        for bottom, draw in ((0.05, _scapula), (0.50, _humerus)):
            found = mirrored.near(left=0.27, right=0.80, top=-0.34, bottom=bottom)
            if found is not None:
                total[found[1]] += draw(found[0], anatomy, study)
    total *= anatomy.bone
    return total


def _hollow(distance: Field, radius: float | Field, *, shell: float, pixel: float) -> Field:
    """Bone in a tube with a dense shell and a spongy inside: 1 in the shell's brightest line, about a third inside."""
    inverse = 1 / radius
    outer = np.square(distance * inverse)
    inner = np.square(distance * (inverse / (1 - shell)))
    soft = pixel / 0.030  # a pixel across a bone of 12 mm
    wall = 1.35 * (soft_root(1 - outer, soft) - 0.80 * (1 - shell) * soft_root(1 - inner, soft))
    bone: Field = np.maximum(wall, 0)
    return bone


def _ribs(canvas: Canvas, anatomy: Anatomy, study: Study, cage: Field) -> Field:
    """Twelve pairs as one periodic pattern on the rib cage: each pixel meets its back half and its front half."""
    wide = cage + 0.006
    ratio = np.abs(canvas.x) / wide
    inside = step(1.01 - ratio, 0.02 + 2 * canvas.pixel)
    ratio = np.minimum(ratio, 0.9995)
    angle = np.arcsin(ratio) * (2 / np.pi)
    cosine = np.sqrt(1 - ratio * ratio)
    number_of = Curve(anatomy.levels, range(1 - _FIRST_RIB, 19 - _FIRST_RIB))
    drop = anatomy.rib_drop * (1 - 0.08 * study.breath) * (1.12 if study.portable else 1.0)
    fall = drop * _RIB_FALL(canvas.y)
    # Seen edge-on at the side of the chest, a rib's path is long.
    edge_on = 1 / np.sqrt(cosine * cosine + 0.16)
    total = np.zeros_like(canvas.x)
    halves = (
        (-0.22 * angle + 1.22 * angle**2, (-0.22 + 2.44 * angle), 1.0, 1.0),
        (1.0 + 2.22 * (1 - angle) - 0.55 * (1 - angle) ** 2, (-2.22 + 1.1 * (1 - angle)), 1.15, 0.62),
    )
    for back, (path, slope, stretch, strength) in zip((True, False), halves, strict=True):
        origin = canvas.y - fall * path
        number = number_of(origin)
        nearest = np.clip(np.rint(number), 1, 12)
        # Distance at right angles to the rib: the vertical one, less where the rib is steep.
        gradient = fall * slope * (2 / np.pi) / (wide * (cosine + 0.05))
        spacing = _RIB_SPACING(origin)
        distance = (number - nearest) * spacing / np.sqrt(1 + gradient * gradient)
        radius = anatomy.rib_radius * stretch * _RIB_SIZE(nearest)
        bone = _hollow(distance, radius, shell=0.20 * anatomy.cortex, pixel=canvas.pixel)
        bone *= (strength * 0.36) * edge_on * (np.abs(number - nearest) < 0.5)
        if back:
            bone *= step(np.abs(canvas.x) - 0.022, 0.02)
        else:
            # The front end is cartilage, which shows only where it is calcified.
            end = _CARTILAGE(nearest)
            bone *= step(ratio - end, 0.10) * (nearest < 10.5)
        total += bone
    total *= inside
    return total


def _spine(canvas: Canvas, anatomy: Anatomy, study: Study) -> Field:
    """Vertebral bodies with end plates, discs between them, pedicles and spinous processes."""
    bend = anatomy.bend[0] * np.sin(4 * canvas.y + anatomy.bend[1])
    x = canvas.x - bend
    number = Curve(anatomy.levels, range(18))(canvas.y - 0.012)
    past = canvas.y - 0.012 - anatomy.levels[-1]
    number = number + np.maximum(past, 0) / 0.075
    phase = number - np.floor(number) - 0.5
    half = _SPINE_HALF_WIDTH(canvas.y)
    # A body has a waist.
    side = half * (0.92 + 0.32 * phase * phase) - np.abs(x)
    pitch = _VERTEBRA_HEIGHT(canvas.y)
    end = (0.42 - np.abs(phase)) * pitch
    soft = 0.004 + 1.5 * canvas.pixel
    body = step(side, soft) * step(end, soft)
    plate = np.exp(-np.square(end - 0.003) / (2 * (0.0022**2 + (0.5 * canvas.pixel) ** 2))) * step(side, soft)
    wall = np.exp(-np.square(side - 0.002) / (2 * (0.0020**2 + (0.5 * canvas.pixel) ** 2))) * step(end, soft)
    total = 0.16 * body + 0.10 * plate + 0.09 * wall + 0.12 * step(side + 0.004, 0.012)
    for offset in (-1, 1):
        away = np.square((x - offset * 0.62 * half) / 0.0075) + np.square((phase + 0.17) * pitch / 0.0095)
        total += 0.22 * np.exp(-np.square(away - 0.8) * 1.5)
        # Transverse processes reach out towards the ribs.
        reach = np.square((x - offset * (half + 0.010)) / 0.018) + np.square((phase + 0.12) * pitch / 0.0085)
        total += 0.12 * np.exp(-reach * 1.2)
    spinous = np.square(x / 0.0055) + np.square((phase - 0.28) * pitch / 0.012)
    total += 0.22 * np.exp(-spinous)
    dense: Field = total * _SPINE_DENSITY(canvas.y)
    return dense


def _clavicles(canvas: Canvas, anatomy: Anatomy, study: Study) -> Field:
    """Two S-shaped bones from the manubrium to the acromion."""
    x = np.abs(canvas.x)
    along = (x - 0.030) / (0.345 * anatomy.width - 0.030)
    slope = anatomy.clavicle_slope + (0.02 if study.portable else 0.0)
    tilt = -0.006 * np.sign(canvas.x)
    bow = anatomy.clavicle_bow * np.sin(2 * np.pi * along)
    y = -0.242 - slope * along + bow + tilt * along
    length = 0.31 * anatomy.width
    gradient = (-slope + 2 * np.pi * anatomy.clavicle_bow * np.cos(2 * np.pi * along)) / length
    distance = (canvas.y - y) / np.sqrt(1 + gradient * gradient)
    radius = _CLAVICLE_RADIUS(along)
    bone = _hollow(distance, radius, shell=0.24 * anatomy.cortex, pixel=canvas.pixel)
    ends = step(along + 0.02, 0.06) * step(0.98 - along, 0.12)
    total: Field = 0.50 * bone * ends
    return total


def _scapula(canvas: Canvas, anatomy: Anatomy, study: Study) -> Field:
    """Blade with its rims, spine, glenoid and coracoid; x grows outward."""
    soft = 0.004 + 1.5 * canvas.pixel
    out = 0.030 if not study.portable else 0.0  # rolled forward, a standing patient's scapulae clear the lungs
    width = anatomy.width
    corners = ((0.285 + out, -0.295), (0.395 * width + 0.005, -0.225), (0.315 + out, 0.005))
    border = np.full_like(canvas.x, 1.0)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = float(np.hypot(bx - ax, by - ay))
        across = ((bx - ax) * (canvas.y - ay) - (by - ay) * (canvas.x - ax)) * (1 / length)
        border = np.minimum(border, across)
    blade = step(border, soft)
    rim = np.exp(-np.square(border - 0.003) / (2 * (0.0030**2 + (0.5 * canvas.pixel) ** 2)))
    ridge = tube(canvas, start=(0.30 + out, -0.245), end=(0.405 * width, -0.300), radii=(0.006, 0.013))
    glenoid = tube(canvas, start=(0.392 * width, -0.245), end=(0.385 * width, -0.195), radii=(0.012, 0.012))
    coracoid = tube(canvas, start=(0.375 * width, -0.265), end=(0.385 * width, -0.255), radii=(0.014, 0.012))
    total = 0.05 * blade + 0.12 * rim
    whole: Field = total + 0.16 * step(ridge, soft) + 0.12 * step(glenoid, soft) + 0.10 * step(coracoid, soft)
    return whole


def _humerus(canvas: Canvas, anatomy: Anatomy, study: Study) -> Field:
    """Head and shaft of the upper arm's bone; x grows outward."""
    soft = 0.004 + 1.5 * canvas.pixel
    elbow = (0.41 * anatomy.width + 0.065 + anatomy.wall + study.arms, 0.42)
    head = (0.425 * anatomy.width, -0.238)
    shaft = tube(canvas, start=head, end=elbow, radii=(0.021, 0.0165))
    hollow = _hollow(0.019 - shaft, 0.019, shell=0.30, pixel=canvas.pixel)
    # The shaft begins inside the head, which hides its upper end.
    total = 0.42 * hollow * step(shaft, soft) * step(canvas.y + 0.20, 0.07)
    knob = tube(canvas, start=head, end=(head[0] + 0.012, head[1] + 0.035), radii=(0.037, 0.026))
    shell = np.exp(-np.square(knob - 0.003) / (2 * (0.0025**2 + (0.5 * canvas.pixel) ** 2)))
    whole: Field = total + 0.10 * step(knob, soft) + 0.08 * shell
    return whole
