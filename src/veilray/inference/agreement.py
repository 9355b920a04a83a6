"""Whether the ranks of a group have the same network."""

from __future__ import annotations

from veilray.errors import RunError
from veilray.inference.denoiser import Denoiser
from veilray.parallel.group import Group, fails_together
from veilray.parallel.sharding import other_rank


def check_same_weights(denoiser: Denoiser, group: Group, *, source: str) -> None:
    """Raise RunError, on all ranks, where one found other weights in `source` than rank 0."""
    other = other_rank(denoiser.origin and denoiser.origin.weights_sha256, group)
    with fails_together(group):
        if other is not None:
            raise RunError(f"rank {other} finds other weights in {source} than rank 0: give all the same")
