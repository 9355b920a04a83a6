"""How a process that `torchrun` has started joins the group of its ranks, and leaves it."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from veilray.errors import LostRankError, ToldElsewhere, UsageError, VeilrayError
from veilray.parallel.ending import explained, uninterrupted_end
from veilray.parallel.group import ALONE, Backend, Group, fails_together, first_line, lost_ranks_explained
from veilray.parallel.rendezvous import LEAVING_SECONDS, ends_with_lead, new_life, unheard
from veilray.parallel.restart import comes_back, leave_if_over

if TYPE_CHECKING:
    import torch


MEETING_SECONDS = 600.0
"""Longest wait for the other ranks where nothing has said yet how long it is to be."""
STORE_SECONDS = 60.0
"""Longest wait for a launcher's store: no signal interrupts it."""


_tried = threading.Event()


def has_met() -> bool:
    """Whether this process has met the other ranks, or tried to."""
    return _tried.is_set()


def raise_together(error: VeilrayError) -> NoReturn:
    """Raise an error of a rank that has not met the others yet, as if it had: it is told once, whichever ranks have it.

    Raises ToldElsewhere where another rank tells it. Where the others cannot be reached it is told
    all the same.
    """
    try:
        with met(timeout=STORE_SECONDS) as ranks, fails_together(ranks):
            raise error
    except (LostRankError, KeyboardInterrupt):
        raise error from None
    raise AssertionError("ranks that have met fail together")


@contextlib.contextmanager
def met(*, timeout: float = MEETING_SECONDS) -> Iterator[Group]:
    """The ranks that `torchrun`'s environment (RANK, WORLD_SIZE, ...) describes, before they are `joined`.

    They can agree on what JSON can hold, such as how to join, and wait for each other as long as it takes one of them
    to read its data (`PREPARING_SECONDS`); `ALONE` where there is no such environment. An error
    inside the block is told once: other ranks raise ToldElsewhere, and so do all that a launcher starts again after an
    error that would only come back. Raises UsageError where the environment is wrong or a port in use, LostRankError
    where the others cannot be reached, or SIGTERM told this rank to end inside the block.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    import torch.distributed as dist

    _tried.set()
    group = _meet(timeout)
    try:
        with uninterrupted_end(), lost_ranks_explained():
            yield group
    except ToldElsewhere:
        raise
    except (Exception, KeyboardInterrupt) as error:
        status = error.exit_status if isinstance(error, VeilrayError) else VeilrayError.exit_status
        if comes_back(error):
            group.end_for_good(status)
        if not group.is_first("error"):
            raise ToldElsewhere(status) from error
        if isinstance(error, KeyboardInterrupt):
            raise explained(error) from error
        raise
    finally:
        if dist.is_initialized():  # still, after an error: the others must not learn of it before it is told
            with contextlib.suppress(RuntimeError):  # that it cannot part from a rank that has ended
                dist.destroy_process_group()
        group.leave()
        # Once this process has told its error: a batch system may end it as soon as another rank has ended.
        atexit.register(group.outlive_others, LEAVING_SECONDS)


@contextlib.contextmanager
def joined(
    device: torch.device, *, timeout: float = 600.0, shared: bool = False, ranks: Group | None = None
) -> Iterator[Group]:
    """Join the group of the ranks that have `met`; where `ranks` is None they meet first. `ALONE` where there is none.

    Tensors on CUDA cross by NCCL, or by gloo where ranks share a GPU (`shared`); those on the CPU by gloo. An exchange
    that takes longer than `timeout` seconds fails. Raises what `met` raises, and UsageError where there are fewer GPUs
    than ranks.
    """
    if ranks is None:
        with met(timeout=timeout) as found, joined(device, timeout=timeout, shared=shared, ranks=found) as group:
            yield group
        return
    if not ranks.joined:
        yield ranks
        return
    import torch.distributed as dist

    with uninterrupted_end():
        yield _join(ranks, device, timeout=timeout, shared=shared)
    dist.destroy_process_group()


def _meet(timeout: float) -> Group:
    place = {name: _number(name, default) for name, default in _PLACE.items()}
    rank, world_size = place["RANK"], place["WORLD_SIZE"]
    try:
        store = _store(rank, world_size, timeout)
        store.set_timeout(timedelta(seconds=timeout))
        leave_if_over(store, local_rank=place["LOCAL_RANK"], world_size=world_size)
        store = new_life(store, rank=rank, world_size=world_size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise _no_group(error) from error
    return Group(rank, world_size, place["LOCAL_RANK"], place["LOCAL_WORLD_SIZE"], "store", store)


def _store(rank: int, world_size: int, timeout: float) -> Any:
    """torch.distributed's store that the environment names, where ranks meet. RuntimeError where it is not there."""
    from torch.distributed.rendezvous import rendezvous

    def found(seconds: float) -> Any:
        return next(rendezvous("env://", rank, world_size, timeout=timedelta(seconds=seconds)))[0]

    if not ends_with_lead():  # a launcher's store is there before its ranks are
        return found(min(timeout, STORE_SECONDS))
    if rank == 0:
        return found(timeout)
    # That of a batch system's rank 0 comes when that one does. Where another program has the port and says nothing,
    # torch waits for ever, whatever its timeout, and in any case hears no signal meanwhile.
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(found(2 * timeout))  # of the two waits the one below ends first
        except Exception as error:
            answer.set_exception(error)

    with unheard() as stay_unheard:
        threading.Thread(target=ask, daemon=True).start()
        try:
            return answer.result(timeout)
        except TimeoutError:
            stay_unheard()  # that thread tries on, and torch writes of each try
            raise RuntimeError(
                f"rank 0 did not answer within {timeout:.0f} s; it has not started, or another program has the port"
            ) from None


def _join(ranks: Group, device: torch.device, *, timeout: float, shared: bool) -> Group:
    import torch
    import torch.distributed as dist

    backend: Backend = "nccl" if device.type == "cuda" and not shared else "gloo"
    with fails_together(ranks):
        own = ranks.device(device, shared=shared)
        if own.type == "cuda":
            torch.cuda.set_device(own)
    try:
        dist.init_process_group(
            # Small messages stay on the CPU, and need not wait for the GPU.
            "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo",
            store=ranks._store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timedelta(seconds=timeout),
            device_id=own if backend == "nccl" else None,
        )
    except (RuntimeError, ValueError) as error:
        raise _no_group(error) from error
    return replace(ranks, backend=backend)


_PLACE: Mapping[str, int | None] = {"RANK": None, "WORLD_SIZE": None, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise UsageError(f"the environment variable {name} is {text!r}, not a number; torchrun sets it")
    return int(text)


def _no_group(error: Exception) -> VeilrayError:
    where = f"{os.environ.get('MASTER_ADDR', 'an unnamed host')}:{os.environ.get('MASTER_PORT', 'an unnamed port')}"
    if "EADDRINUSE" in str(error) or "in use" in str(error):
        return UsageError(
            f"the port of {where} is in use by another program; choose another: "
            "that of --rdzv-endpoint, or --master-port where torchrun is given none"
        )
    return LostRankError(f"the other ranks cannot be reached through {where}: {first_line(error)}")
