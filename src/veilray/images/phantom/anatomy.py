"""What stays the same in all radiographs of one patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One patient's build. Lengths are in frame widths, about 40 cm, before the study's own scale."""

    width: float
    """Of the thorax, relative to the usual."""
    height: float
    """Of the lungs, relative to the usual."""
    wall: float
    """Fat and muscle between ribs and skin."""
    thickness: float
    """Of the trunk from front to back."""
    breast: float
    """Thickness of the breasts; 0 in most men."""
    breast_drop: float
    dome: tuple[float, float]
    """Height of the right and left diaphragm above the usual."""
    heart: float
    """Of the heart's diameter, relative to the usual."""
    heart_turn: float
    """Angle of the heart's long axis below the horizontal, in radians."""
    aorta: float
    """Radius of the aortic knob."""
    mediastinum: float
    """Width of the mediastinum, relative to the usual."""
    bend: tuple[float, float]
    """Scoliosis: amplitude and phase of the spine's curve."""
    levels: tuple[float, ...]
    """18 heights of the vertebrae C3 to T12 and beyond; entry 7 is the first thoracic, where the first rib begins."""
    rib_drop: float
    """How far a rib falls between the spine and the side of the chest."""
    rib_radius: float
    """Half the height of a rib."""
    bone: float
    """Mineral density, relative to the usual."""
    cortex: float
    """Cortical thickness, relative to the usual."""
    clavicle_slope: float
    clavicle_bow: float
    vessel_seed: int
    texture_seed: int


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A patient at random."""
    female = rng.random() < 0.45
    heavy = rng.beta(1.6, 3.0)
    spacing = rng.uniform(0.0560, 0.0625)
    # Cervical vertebrae are lower than thoracic ones, and those grow towards the loins.
    steps = spacing * np.concatenate([np.full(7, 0.62), np.linspace(0.80, 1.22, 10)])
    steps *= 1 + 0.035 * rng.standard_normal(17)
    levels = np.concatenate([[0.0], np.cumsum(steps)])
    levels += -0.335 + rng.normal(0, 0.006) - levels[7]
    return Anatomy(
        width=rng.normal(0.97 if female else 1.03, 0.035),
        height=rng.normal(0.96 if female else 1.03, 0.05),
        wall=0.030 + 0.075 * heavy,
        thickness=0.47 + 0.15 * heavy + rng.normal(0, 0.012),
        breast=rng.uniform(0.04, 0.13) if female else 0.03 * heavy,
        breast_drop=rng.uniform(-0.02, 0.06),
        dome=(rng.normal(0, 0.012), rng.normal(0, 0.012)),
        heart=rng.normal(1.0, 0.09),
        heart_turn=rng.normal(0.66, 0.10) - 0.25 * heavy,
        aorta=rng.uniform(0.026, 0.040),
        mediastinum=rng.normal(1.0, 0.10),
        bend=(rng.normal(0, 0.006), rng.uniform(0, 2 * np.pi)),
        levels=tuple(levels.tolist()),
        rib_drop=rng.uniform(0.092, 0.135),
        rib_radius=rng.uniform(0.0135, 0.0165) * (0.95 if female else 1.05),
        bone=rng.normal(1.0, 0.12),
        cortex=rng.uniform(0.75, 1.3),
        clavicle_slope=rng.uniform(0.035, 0.095),
        clavicle_bow=rng.uniform(0.004, 0.015),
        vessel_seed=int(rng.integers(2**31)),
        texture_seed=int(rng.integers(2**31)),
    )
