"""How a process that `torchrun` has started joins the group of its ranks, and leaves it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from veilray.errors import LostRankError, ToldElsewhere, UsageError, VeilrayError
from veilray.parallel.group import ALONE, Backend, Group, first_line
from veilray.parallel.rendezvous import OVER, lasting, new_life

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def joined(device: torch.device, *, timeout: float = 600.0, shared: bool = False) -> Iterator[Group]:
    """Join the group that `torchrun`'s environment (RANK, WORLD_SIZE, ...) describes; `ALONE` where there is none.

    Tensors on CUDA cross by NCCL, or by gloo where ranks share a GPU (`shared`); those on the CPU by gloo. An exchange
    that takes longer than `timeout` seconds fails. An error inside the block is told once: other ranks raise
    ToldElsewhere. Raises UsageError where the environment is wrong or a port in use, LostRankError where the others
    cannot be reached.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    import torch.distributed as dist

    group = _begin(device, timeout=timeout, shared=shared)
    try:
        yield group
    except ToldElsewhere:
        raise
    except KeyboardInterrupt:
        if not group.is_first("error"):
            raise ToldElsewhere(VeilrayError.exit_status) from None
        raise
    except VeilrayError as error:
        if not isinstance(error, LostRankError):
            group.end_for_good(error.exit_status)
        if not group.is_first("error"):
            raise ToldElsewhere(error.exit_status) from error
        raise
    finally:
        dist.destroy_process_group()


def _begin(device: torch.device, *, timeout: float, shared: bool) -> Group:
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    place = {name: _number(name, default) for name, default in _PLACE.items()}
    backend: Backend = "nccl" if device.type == "cuda" and not shared else "gloo"
    before = Group(place["RANK"], place["WORLD_SIZE"], place["LOCAL_RANK"], place["LOCAL_WORLD_SIZE"], backend)
    own = before.device(device, shared=shared)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    wait = timedelta(seconds=timeout)
    try:
        store, rank, world_size = next(rendezvous("env://", before.rank, before.world_size, timeout=wait))
        _leave_if_over(store)
        store = new_life(store, rank=rank, world_size=world_size, timeout=timeout)
        dist.init_process_group(
            # Small messages stay on the CPU, and need not wait for the GPU.
            "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=wait,
            device_id=own if backend == "nccl" else None,
        )
    except (RuntimeError, ValueError) as error:
        raise _no_group(error) from error
    return Group(rank, world_size, before.local_rank, before.local_world_size, backend, store)


_PLACE: Mapping[str, int | None] = {"RANK": None, "WORLD_SIZE": None, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise UsageError(f"the environment variable {name} is {text!r}, not a number; torchrun sets it")
    return int(text)


def _no_group(error: Exception) -> VeilrayError:
    where = f"{os.environ.get('MASTER_ADDR', 'an unnamed host')}:{os.environ.get('MASTER_PORT', 'an unnamed port')}"
    if "EADDRINUSE" in str(error) or "in use" in str(error):
        return UsageError(f"the port of {where} is in use by another program; choose another with --master-port")
    return LostRankError(f"the other ranks cannot be reached through {where}: {first_line(error)}")


def _leave_if_over(store: Any) -> None:
    kept = lasting(store)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and kept.check([OVER]):
        raise ToldElsewhere(int(kept.get(OVER)))
