"""What lies on a patient in bed: electrodes and their cables, a central venous line."""

from __future__ import annotations

import numpy as np

from veilray.images.phantom.canvas import Canvas, Field, step, stroke
from veilray.images.phantom.study import Study

_METAL = 75.0
"""Attenuation of a frame width of cable: copper strands in plastic, averaged over the cross-section."""


def draw_devices(canvas: Canvas, study: Study, *, size: int) -> Field:
    """(size, size) attenuation by electrodes, cables and catheter; all 0 unless the study is portable."""
    total = np.zeros((size, size), dtype=np.float32)
    if not study.portable:
        return total
    rng = np.random.default_rng([study.seed, 1])
    bundle = np.array([rng.choice([-0.30, 0.30]), 0.50])
    lines, radii = [], []
    for place in ((-0.25, -0.24), (0.26, -0.25), (0.24, 0.16)):
        electrode = np.array(place) + rng.normal(0, 0.03, 2)
        if rng.random() < 0.35:
            continue
        _add_electrode(total, canvas, electrode)
        bend = (electrode + bundle) / 2 + rng.normal(0, 0.14, (2, 2))
        lines.append(_bezier(electrode, bend[0], bend[1], bundle))
        radii.append(0.0021)
    if rng.random() < 0.4:
        # From the right jugular vein down the superior vena cava.
        tip = np.array([-0.030, rng.uniform(-0.06, 0.02)])
        lines.append(_bezier(np.array([-0.10, -0.5]), np.array([-0.06, -0.30]), np.array([-0.032, -0.24]), tip))
        radii.append(0.0020)
    if lines:
        starts = study.to_picture(np.concatenate([line[:-1] for line in lines]), size)
        ends = study.to_picture(np.concatenate([line[1:] for line in lines]), size)
        unit = size / study.scale
        thick = np.repeat(radii, [len(line) - 1 for line in lines]) * unit
        total += stroke(size, starts, ends, thick) * np.float32(_METAL / unit)
    return total


def _add_electrode(total: Field, canvas: Canvas, centre: Field) -> None:
    """A snap in a ring of gel."""
    x, y = float(centre[0]), float(centre[1])
    found = canvas.near(left=x, top=y, right=x, bottom=y)
    if found is None:
        return
    part, place = found
    radius = np.hypot(part.x - x, part.y - y)
    soft = 1.5 * part.pixel
    total[place] += 0.9 * step(0.0062 - radius, soft) + 0.25 * step(0.003 - np.abs(radius - 0.0125), soft)


def _bezier(start: Field, first: Field, second: Field, end: Field) -> Field:
    """(49, 2) points on the cubic with these four control points."""
    t = np.linspace(0, 1, 49)[:, None]
    points: Field = (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3 * end
    return points
