"""What an objective that sees no clean image asks of a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]
"""From noisy images (N, 1, H, W) and what is known of their noise (N, 2) to estimates (N, 1, H, W)."""
