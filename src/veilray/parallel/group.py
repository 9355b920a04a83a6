"""Groups of processes that work on one job: who is in it, and the little they say to each other.

A process started by `torchrun` is one rank of a group; any other process is `ALONE`, and every exchange with itself is
a no-op. What crosses ranks is tensors and JSON, never pickled objects; sums and counts, never means.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from veilray import errors
from veilray.errors import LostRankError, ToldElsewhere, UsageError, VeilrayError
from veilray.parallel import restart
from veilray.parallel.ending import pass_over_signals
from veilray.parallel.rendezvous import LEFT, POLL_SECONDS, await_keys, await_leaving, ends_with_lead, unheard
from veilray.parallel.workers import available_cores

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Item = TypeVar("Item")
Backend = Literal["none", "store", "gloo", "nccl"]
SAID, GATHERED, TELLING = "veilray/said", "veilray/gathered", "veilray/telling"
_TELLING_SECONDS = 10.0
_AWAKE_SECONDS = 0.02
_YIELD = getattr(os, "sched_yield", lambda: time.sleep(0.0))


@dataclass(frozen=True)
class Group:
    """This process's place among those that work on one job."""

    rank: int = 0
    """0 to world_size - 1; rank 0 leads."""
    world_size: int = 1
    """Processes in the group."""
    local_rank: int = 0
    """Rank among the processes on this machine."""
    local_world_size: int = 1
    """Processes on this machine."""
    backend: Backend = "none"
    """What carries the tensors of the device: gloo, nccl, or none in a process that is alone. `store`: the ranks have
    met, and only what JSON can hold crosses, through the launcher's store."""
    _store: Any = field(default=None, repr=False, compare=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        """A copy of a network whose layers hold the group is in the same group."""
        return self

    @property
    def is_lead(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0

    @property
    def joined(self) -> bool:
        """Whether there is a process group, be it of one rank."""
        return self.backend != "none"

    def device(self, device: torch.device, *, shared: bool = False) -> torch.device:
        """The one device of this kind that this rank uses: GPU number `local_rank` on CUDA.

        `shared` lets ranks share the GPUs there are. UsageError where there are fewer GPUs than ranks otherwise.
        """
        import torch

        if device.type != "cuda" or not self.joined:
            return device
        count = torch.cuda.device_count()
        if self.local_world_size > count and not shared:
            raise UsageError(
                f"{self.local_world_size} processes on {socket.gethostname()}, which has {count} GPUs: start one "
                "process a GPU, or set launch.device = 'cpu'"
            )
        return torch.device("cuda", self.local_rank % count)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place; returns it."""
        return self.sum_later_(tensor)()

    def sum_later_(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to add up a tensor over all ranks, in place; the function returned waits for the sum.

        All ranks must begin their exchanges in the same order.
        """
        if not self.joined:
            return lambda: tensor
        import torch
        import torch.distributed as dist

        on_cpu = tensor.device.type == "cpu"
        # Of two ranks, all_reduce has each send two messages in turn, and all_gather one, with as many bytes in all.
        parts = [torch.empty_like(tensor) for _ in range(2)] if on_cpu and self.world_size == 2 else []
        with lost_ranks_explained():
            work = dist.all_gather(parts, tensor, async_op=True) if parts else dist.all_reduce(tensor, async_op=True)

        def wait() -> Tensor:
            with lost_ranks_explained():
                if on_cpu and self.local_world_size <= _cores():
                    _stay_awake(work)
                work.wait()
            with torch.no_grad():
                return torch.add(*parts, out=tensor) if parts else tensor

        return wait

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank; a value is anything that JSON can hold."""
        if not self.joined:
            return [value]
        if self.backend == "store":
            return self._gather_in_store(value)
        import torch
        import torch.distributed as dist

        encoded = _encoded(value)
        with lost_ranks_explained():
            size = torch.tensor([len(encoded)])
            sizes = [torch.empty_like(size) for _ in range(self.world_size)]
            dist.all_gather(sizes, size)
            longest = max(int(one) for one in sizes)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(encoded)] = encoded
            parts = [torch.empty_like(padded) for _ in range(self.world_size)]
            dist.all_gather(parts, padded)
        return [_decoded(part[: int(length)]) for part, length in zip(parts, sizes, strict=True)]

    def _gather_in_store(self, value: Any) -> list[Any]:
        with lost_ranks_explained():
            number = self._store.add(f"{GATHERED}/{self.rank}", 1)  # how many there have been, as on every rank
            keys = [f"{GATHERED}/{rank}/{number}" for rank in range(self.world_size)]
            self._store.set(keys[self.rank], json.dumps(value))
            await_keys(self._store, keys)
            values = [json.loads(self._store.get(key)) for key in keys]
            # The lead's process may hold the store, and end it with itself.
            if self.is_lead:
                await_keys(self._store, [f"{key}/read" for key in keys[1:]])
            else:
                self._store.set(f"{keys[self.rank]}/read", "")
        return values

    def broadcast(self, value: Any) -> Any:
        """The lead's value on every rank; what the others pass is not looked at."""
        if not self.joined:
            return value
        if self.backend == "store":
            return self._gather_in_store(value if self.is_lead else None)[0]
        import torch
        import torch.distributed as dist

        encoded = _encoded(value if self.is_lead else None)
        with lost_ranks_explained():
            size = torch.tensor([len(encoded)])
            dist.broadcast(size, src=0)
            content = encoded if self.is_lead else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(content, src=0)
        return _decoded(content)

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """The lead's tensor on every rank, in place; of one shape and type everywhere. Returns it."""
        if self.joined:
            import torch.distributed as dist

            with lost_ranks_explained():
                dist.broadcast(tensor, src=0)
        return tensor

    def barrier(self) -> None:
        """Wait until every rank is here."""
        import torch

        self.sum_(torch.zeros(1))

    def is_first(self, what: str) -> bool:
        """Whether this rank is the first to come here, of those started together: to say a thing only once.

        Works also where other ranks have ended, as long as the launcher's store lives; true where it does not.
        """
        if self._store is None:
            return True
        try:
            with unheard():
                return int(self._store.add(f"{SAID}/{what}", 1)) == 1
        except RuntimeError:
            return True

    def end_for_good(self, status: int) -> None:
        """Tell processes that the launcher restarts after this failure that it would only happen again."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError), unheard():
                restart.note_over(self._store, status)

    def let_lead_tell(self) -> None:
        """Of a failure that all ranks know: no rank ends before the lead is past being interrupted in telling it.

        A launcher tells the lead to end as soon as another rank has ended, and on a busy machine that comes first.
        """
        pass_over_signals()
        if self._store is None:
            return
        with contextlib.suppress(RuntimeError), unheard():
            if self.is_lead:
                self._store.set(TELLING, "")
            deadline = time.monotonic() + _TELLING_SECONDS
            while not self._store.check([TELLING]) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)

    def begin(self) -> None:
        """Tell processes that the launcher starts later that they go on with what is begun now."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError), unheard():
                restart.note_begun(self._store)

    def has_begun(self) -> bool:
        """Whether ranks of this launch that were there before these have said that they `begin`."""
        return self._store is not None and restart.has_begun(self._store)

    def leave(self) -> None:
        """Say to the others that this rank asks them nothing more."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError), unheard():
                self._store.add(LEFT, 1)

    def outlive_others(self, timeout: float) -> None:
        """Wait, with the store in this process, until all ranks have left, at most `timeout` seconds.

        The others could not ask any more whether an error has been told, and would tell it again.
        """
        if self._store is not None and self.is_lead and ends_with_lead():
            await_leaving(self._store, world_size=self.world_size, timeout=timeout)


ALONE = Group()
"""The group of a process that works by itself."""


@contextlib.contextmanager
def fails_together(group: Group) -> Iterator[None]:
    """An error on one rank inside the block becomes an error on all when they leave it.

    The lead raises it, naming the rank where it is not everybody's; the others raise ToldElsewhere. The block itself
    must not exchange anything, or the ranks that go on would wait for the one that failed.
    """
    if not group.joined:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    faults = group.gather(None if failure is None else _told(failure))
    failed = [rank for rank, fault in enumerate(faults) if fault is not None]
    if not failed:
        return
    first = faults[failed[0]]
    group.let_lead_tell()
    group.end_for_good(first["status"])
    if not group.is_lead:
        raise ToldElsewhere(first["status"]) from failure
    if failure is not None:
        raise failure
    kind = getattr(errors, first["kind"], VeilrayError)
    raise kind(f"rank {failed[0]} on {first['host']}: {first['message']}")


@contextlib.contextmanager
def lost_ranks_explained() -> Iterator[None]:
    """Turn what gloo, NCCL and the store say when a rank has gone into a LostRankError."""
    import torch.distributed as dist

    try:
        yield
    except dist.DistError as error:
        raise LostRankError(_lost(error)) from error
    except RuntimeError as error:
        if not any(word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer", "ProcessGroup")):
            raise
        raise LostRankError(_lost(error)) from error


@overload
def share(work: int, group: Group) -> range: ...
@overload
def share(work: Sequence[Item], group: Group) -> Sequence[Item]: ...
def share(work: int | Sequence[Item], group: Group) -> range | Sequence[Item]:
    """This rank's part of some items, or of the numbers below a count: consecutive, sizes that differ by one at most.

    The parts of all ranks, in the order of ranks, are the whole.
    """
    count = work if isinstance(work, int) else len(work)
    start, end = (count * rank // group.world_size for rank in (group.rank, group.rank + 1))
    return range(start, end) if isinstance(work, int) else work[start:end]


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, VeilrayError):
        message, status = str(error), error.exit_status
    else:
        message, status = f"unexpected {type(error).__name__}: {first_line(error)}", VeilrayError.exit_status
    return {"kind": type(error).__name__, "message": message, "status": status, "host": socket.gethostname()}


def _lost(error: Exception) -> str:
    # Gloo begins with the place in its source, and goes on with advice that is not for Veilray's users.
    reason = re.sub(r"^\[[^\]]*:\d+\] ", "", first_line(error)).partition(". ")[0].rstrip(".")
    return (
        f"another rank has ended or does not answer ({reason}); "
        "its own message says why, where it left one; run the command again (a training with --resume)"
    )


def first_line(error: Exception) -> str:
    """What an error of torch says before its trace, at most 200 characters."""
    return (str(error).splitlines() or [""])[0][:200]


@functools.cache
def _cores() -> int:
    return available_cores()


def _stay_awake(work: Any) -> None:
    """Yield the processor again and again, for a while, instead of sleeping until an exchange is done.

    A process that sleeps may be woken much later than a small exchange takes.
    """
    until = time.monotonic() + _AWAKE_SECONDS
    while not work.is_completed() and time.monotonic() < until:
        _YIELD()


def _encoded(value: Any) -> Tensor:
    import torch

    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decoded(content: Tensor) -> Any:
    return json.loads(bytes(content.tolist()))
