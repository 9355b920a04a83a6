"""What commands share that work over ranks: the group they are in, and who shows progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from veilray.cli.progress import Reporter, progress
from veilray.parallel.group import ALONE, Group
from veilray.parallel.joining import joined
from veilray.parallel.spawn import under_launcher

if TYPE_CHECKING:
    import torch

# Longer than the longest that one rank works while the others wait: digests of a large cohort, a first archive.
TIMEOUT_S = 3600.0


@contextmanager
def working_group() -> Iterator[Group]:
    """The group that torchrun started this process in, or `ALONE`. Results cross on the CPU, whatever computes them."""
    if not under_launcher():
        yield ALONE
        return
    import torch

    with joined(torch.device("cpu"), timeout=TIMEOUT_S) as group:
        yield group


def rank_device(group: Group, device: torch.device, *, shared: bool = True) -> torch.device:
    """The device of this kind that this rank computes on, made the one that torch takes.

    `shared`: ranks may share a GPU; else UsageError where there are fewer GPUs than ranks.
    """
    import torch

    own = group.device(device, shared=shared)
    if own.type == "cuda" and own.index is not None:
        torch.cuda.set_device(own)
    return own


def shown_by_lead(group: Group, total: int | None, description: str, unit: str) -> AbstractContextManager[Reporter]:
    """Progress on the lead, silence on the other ranks."""
    return progress(total, description, unit) if group.is_lead else nullcontext(_Silence())


class _Silence:
    def begin_at(self, done: int) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def say(self, message: str) -> None:
        pass
