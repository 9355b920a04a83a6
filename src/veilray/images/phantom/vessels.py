"""Pulmonary vessels: a tree from each hilum that forks, thins and fades towards the pleura."""

from __future__ import annotations

import numpy as np

from veilray.images.phantom.anatomy import Anatomy
from veilray.images.phantom.canvas import Field, stroke
from veilray.images.phantom.study import Study

_GENERATIONS = 7
_HILA = ((-0.058, -0.062), (0.064, -0.078))


def draw_vessels(anatomy: Anatomy, study: Study, *, size: int) -> Field:
    """(size, size) thickness of blood vessels in frame widths, as if lungs were everywhere."""
    starts, ends, radii = _grow(np.random.default_rng(anatomy.vessel_seed), anatomy)
    stretch = np.array([1 + 0.015 * study.breath, 1 + 0.06 * study.breath])
    starts, ends = starts * stretch, ends * stretch
    unit = size / study.scale
    thickness = stroke(size, study.to_picture(starts, size), study.to_picture(ends, size), radii * unit)
    return thickness * np.float32(1 / unit)


def _grow(rng: np.random.Generator, anatomy: Anatomy) -> tuple[Field, Field, Field]:
    """Segments of both trees: starts and ends (N, 2) in patient coordinates, radii (N,)."""
    pieces: list[tuple[Field, Field, Field]] = []
    for side, hilum in zip((-1, 1), _HILA, strict=True):
        # From straight up to straight down; the trunks to the lower lobes are the largest.
        angle = np.array([-1.30, -0.80, -0.40, 0.00, 0.40, 0.72, 0.98, 1.25]) + rng.normal(0, 0.12, 8)
        radius = np.array([0.0056, 0.0052, 0.0042, 0.0040, 0.0050, 0.0066, 0.0078, 0.0068]) * rng.uniform(0.95, 1.4, 8)
        point = np.tile(np.array(hilum), (8, 1)) + rng.normal(0, 0.010, (8, 2))
        # The trunks leave the hilum one below the other, not from one point.
        point[:, 1] += 0.034 * np.sin(angle)
        length = rng.uniform(0.05, 0.09, 8) + 0.02 * (angle > 0.5)
        for generation in range(_GENERATIONS):
            steps = 5 - generation // 2
            for _ in range(steps):
                angle = angle + rng.normal(0, 0.13, len(angle))
                move = np.stack([side * np.cos(angle), np.sin(angle)], axis=1) * (length / steps)[:, None]
                pieces.append((point, point + move, radius))
                point, radius = point + move, radius * 0.965
            turn = rng.uniform(0.25, 0.65, len(angle))
            larger = rng.uniform(0.72, 0.92, len(angle))
            # Murray's law: the cube of a parent's radius is the sum of its children's cubes.
            smaller = (1 - larger**3) ** (1 / 3)
            sign = rng.choice([-1, 1], len(angle))
            angle = np.concatenate([angle + sign * turn * 0.5, angle - sign * turn * 1.3])
            radius = np.concatenate([radius * larger, radius * smaller])
            length = np.concatenate([length, length]) * rng.uniform(0.62, 0.95, 2 * len(length))
            point = np.concatenate([point, point])
            keep = radius > 0.0010
            angle, radius, length, point = angle[keep], radius[keep], length[keep], point[keep]
    starts, ends, radii = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return starts, ends, radii
