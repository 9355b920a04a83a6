"""What differs from one radiograph of a patient to the next: pose, exposure, collimation, marker, findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from veilray.images.phantom.canvas import Canvas, Field


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A round opacity in the lungs."""

    x: float
    y: float
    radius: float
    depth: float
    """Thickness of water-like tissue at its middle."""
    solid: bool
    """A nodule with an edge, rather than a patch of infiltrate that fades."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One radiograph's circumstances."""

    portable: bool
    """AP in bed rather than PA upright: less breath, larger heart, arms at the side, cables on the chest."""
    turn: float
    """Rotation in the picture, radians."""
    shift: tuple[float, float]
    scale: float
    """Frame widths shown; above 1 the patient looks smaller."""
    breath: float
    """Inspiration, -1 (shallow) to 1 (deep)."""
    arms: float
    """Abduction of the arms: how far the elbow lies from the trunk."""
    centre: float
    """Attenuation that is displayed as mid-grey."""
    latitude: float
    """Width of the display curve in attenuation; smaller is more contrast."""
    white: float
    """Grey value of the whitest tissue."""
    black: float
    """Grey value that is cut off to 0, relative to that of air."""
    scatter: float
    """Scattered radiation behind the grid, relative to the unattenuated beam."""
    grain: float
    heel: tuple[float, float]
    """Fall of the beam's intensity across the field, (x, y), in attenuation per frame width."""
    field: tuple[float, float, float, float]
    """Collimated edges: left, top, right, bottom, in the picture, -0.5 to 0.5."""
    field_turn: float
    marker: Literal["", "L", "R"]
    marker_place: tuple[float, float]
    marker_disc: bool
    effusion: tuple[float, float]
    """Height of pleural fluid above the right and left costophrenic angle."""
    blobs: tuple[Blob, ...]
    gas: float
    """Size of the gastric bubble."""
    seed: int

    def to_patient(self, size: int) -> Canvas:
        """Patient coordinates of every pixel centre of a (size, size) picture."""
        axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
        cos, sin = float(np.cos(self.turn) * self.scale), float(np.sin(self.turn) * self.scale)
        x = axis[None] * cos + axis[:, None] * sin - self.shift[0]
        y = axis[:, None] * cos - axis[None] * sin - self.shift[1]
        return Canvas(x=x, y=y, pixel=self.scale / size)

    def to_picture(self, points: Field, size: int) -> Field:
        """(N, 2) patient coordinates as (column, row) in pixels; undoes `to_patient`."""
        moved = (points + np.asarray(self.shift)) / self.scale
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        turned = np.stack([moved[:, 0] * cos - moved[:, 1] * sin, moved[:, 0] * sin + moved[:, 1] * cos], axis=1)
        picture: Field = (turned + 0.5) * size - 0.5
        return picture


def draw_study(rng: np.random.Generator, *, portable_share: float) -> Study:
    """A radiograph at random; `portable_share` is how often this patient is examined in bed."""
    portable = rng.random() < portable_share
    cropped = rng.random(4) < (0.30 if portable else 0.12)
    margins = np.where(cropped, rng.uniform(0.0, 0.06, 4), -0.1)
    return Study(
        portable=portable,
        turn=rng.normal(0, 0.035 if portable else 0.015),
        shift=(rng.normal(0, 0.018), rng.normal(0.0, 0.025)),
        scale=rng.uniform(0.83, 1.02) if portable else rng.uniform(0.80, 0.96),
        breath=rng.normal(-0.9, 0.5) if portable else rng.normal(0.3, 0.4),
        arms=rng.uniform(0.0, 0.08) if portable else rng.uniform(0.06, 0.20),
        centre=rng.normal(2.40, 0.24),
        latitude=rng.uniform(0.95, 1.40) if portable else rng.uniform(0.75, 1.15),
        white=min(0.97, rng.normal(0.885, 0.05)),
        black=rng.uniform(0.0, 1.1),
        scatter=rng.uniform(0.012, 0.03) if portable else rng.uniform(0.006, 0.016),
        grain=rng.uniform(0.6, 1.4),
        heel=(rng.normal(0, 0.15), rng.normal(0, 0.15)),
        field=(-0.5 + margins[0], -0.5 + margins[1], 0.5 - margins[2], 0.5 - margins[3]),
        field_turn=rng.normal(0, 0.02),
        marker=("", "L", "R")[int(rng.choice(3, p=[0.25, 0.55, 0.20]))],
        marker_place=(rng.uniform(0.38, 0.45), rng.uniform(-0.44, -0.28)),
        marker_disc=bool(rng.random() < 0.35),
        effusion=_draw_effusion(rng, portable=portable),
        blobs=_draw_blobs(rng, portable=portable),
        gas=max(0.0, rng.normal(0.032, 0.02)),
        seed=int(rng.integers(2**31)),
    )


def _draw_effusion(rng: np.random.Generator, *, portable: bool) -> tuple[float, float]:
    likely = 0.25 if portable else 0.10
    heights = rng.gamma(2.0, 0.028, 2) * (rng.random(2) < likely)
    return float(heights[0]), float(heights[1])


def _draw_blobs(rng: np.random.Generator, *, portable: bool) -> tuple[Blob, ...]:
    blobs = []
    if rng.random() < 0.2:
        side = float(rng.choice([-1, 1]))
        blobs.append(
            Blob(
                x=side * rng.uniform(0.12, 0.26),
                y=rng.uniform(-0.2, 0.15),
                radius=rng.uniform(0.010, 0.028),
                depth=rng.uniform(0.03, 0.06),
                solid=True,
            )
        )
    if rng.random() < (0.45 if portable else 0.2):
        side, x, y = float(rng.choice([-1, 1])), rng.uniform(0.12, 0.22), rng.uniform(-0.2, 0.12)
        blobs += [
            Blob(
                x=side * (x + rng.normal(0, 0.04)),
                y=y + rng.normal(0, 0.05),
                radius=rng.uniform(0.02, 0.06),
                depth=rng.uniform(0.02, 0.10),
                solid=False,
            )
            for _ in range(int(rng.integers(3, 9)))
        ]
    return tuple(blobs)
