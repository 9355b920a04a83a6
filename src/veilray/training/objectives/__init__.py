"""Objectives: what training minimises."""

from __future__ import annotations

from veilray.training.objectives.pixel import image_losses
from veilray.training.objectives.supervised import SupervisedObjective

__all__ = ["SupervisedObjective", "image_losses"]
