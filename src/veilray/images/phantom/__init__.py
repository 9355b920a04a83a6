"""A procedural chest phantom: frontal radiographs of patients who do not exist.

Thicknesses of tissue, air and bone along the beam are summed, then exposed and displayed. Everything is defined in
frame widths, so that every size shows the same picture. A patient's anatomy persists over the follow-ups; pose,
breath, exposure and findings do not.
"""

from __future__ import annotations

from veilray.images.phantom.render import chest_phantom, draw_patient, phantom_of
from veilray.images.phantom.write import write_phantoms

__all__ = ["chest_phantom", "draw_patient", "phantom_of", "write_phantoms"]
