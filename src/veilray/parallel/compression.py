"""Gradients that cross ranks as bfloat16: half the bytes of float32, the same range, 8 significant bits.

torch's bf16 hook is for NCCL, which does it on GPUs. Here is the same for gloo. Each rank rounds its gradient to
bfloat16 and sends every other rank the shard that rank is to add up; the owner of a shard adds in float32, in the order
of ranks, rounds the mean once and sends it to all. A rank sends 2 (n - 1) / n times its gradient's bytes at half size,
as a ring in float32 does at full size, and every rank ends with the same bits. Infinities and NaN come through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from veilray.parallel.group import Group, lost_ranks_explained


def compress_gradients(module: DistributedDataParallel, group: Group) -> None:
    """Let a module's gradients, averaged over the ranks of a group, cross them as bfloat16."""
    if group.world_size == 1:
        return
    if group.backend == "nccl":
        module.register_comm_hook(None, bf16_compress_hook)
    else:
        average = Bf16Average(group)
        module.register_comm_hook(
            None, lambda _, bucket: average.add(bucket.buffer(), index=bucket.index(), last=bucket.is_last())
        )


@dataclass(frozen=True)
class _Bucket:
    """Gradients on their way."""

    values: Tensor
    """(n,), this rank's, to be replaced by the mean over all ranks."""
    rounded: Tensor
    """(n,), bfloat16, on the CPU; its parts become the means."""
    shards: Sequence[Tensor]
    """`rounded` cut into one part a rank: the one that this rank adds up."""
    arriving: dict[int, Tensor]
    """This rank's shard of the other ranks' gradients, by rank."""
    under_way: list[dist.Work]
    tag: int
    future: torch.futures.Future[Tensor]


class Bf16Average:
    """Averages buckets of gradients over all ranks.

    A bucket moves on whenever the next one comes, so that its transfers run while gradients are computed and while the
    neighbours are added up; the last bucket waits for all. Every rank brings the same buckets in the same order.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._peers = [rank for rank in range(group.world_size) if rank != group.rank]
        self._memory: dict[int, Tensor] = {}
        self._shared_out: deque[_Bucket] = deque()
        self._added_up: deque[_Bucket] = deque()

    def add(self, values: Tensor, *, index: int, last: bool) -> torch.futures.Future[Tensor]:
        """Bring bucket number `index`, (n,), floating point; the future is `values`, overwritten by the mean.

        Raises LostRankError where another rank has gone.
        """
        with lost_ranks_explained():
            self._shared_out.append(bucket := self._share_out(values, index))
            self._advance(left=0 if last else 1)
        return bucket.future

    def _advance(self, *, left: int) -> None:
        """Move all but `left` buckets of each stage on."""
        while len(self._shared_out) > left:
            self._added_up.append(self._add_up(self._shared_out.popleft()))
        while len(self._added_up) > left:
            self._take_home(self._added_up.popleft())

    def _share_out(self, values: Tensor, index: int) -> _Bucket:
        """Round, and send each rank its shard."""
        count, ranks = values.numel(), self._group.world_size
        largest = -(-count // ranks)
        size = count + largest * len(self._peers)
        memory = self._memory.get(index)
        if memory is None or memory.numel() != size:  # DDP regroups its buckets after the first step
            memory = self._memory[index] = torch.empty(size, dtype=torch.bfloat16)
        rounded = memory[:count]
        rounded.copy_(values if values.device.type == "cpu" else values.to(torch.bfloat16))
        shards = rounded.tensor_split(ranks)
        own = shards[self._group.rank].numel()
        arriving = {
            rank: memory[start : start + own]
            for rank, start in zip(self._peers, range(count, size, max(1, largest)), strict=True)
        }
        devices: list[int | str | torch.device] = [values.device] if values.device.type == "cuda" else []
        bucket = _Bucket(values, rounded, shards, arriving, [], 2 * index, torch.futures.Future(devices=devices))
        self._send(bucket, {rank: shards[rank] for rank in self._peers}, arriving, tag=bucket.tag)
        return bucket

    def _add_up(self, bucket: _Bucket) -> _Bucket:
        """Average this rank's shard over all ranks, and send it to all."""
        _finish(bucket)
        rank, ranks = self._group.rank, self._group.world_size
        own = bucket.shards[rank]
        if ranks == 2:  # one sum in bfloat16 is float32's, rounded once, and halves are exact
            own.add_(bucket.arriving[1 - rank]).mul_(0.5)
        else:
            parts = [own if other == rank else bucket.arriving[other] for other in range(ranks)]
            total = parts[0].float()
            for part in parts[1:]:
                total.add_(part)
            own.copy_(total.div_(ranks))
        others = {other: bucket.shards[other] for other in self._peers}
        self._send(bucket, dict.fromkeys(self._peers, own), others, tag=bucket.tag + 1)
        return bucket

    def _take_home(self, bucket: _Bucket) -> None:
        _finish(bucket)
        bucket.values.copy_(bucket.rounded)
        bucket.future.set_result(bucket.values)

    def _send(self, bucket: _Bucket, out: dict[int, Tensor], back: dict[int, Tensor], *, tag: int) -> None:
        """Begin to send and to receive one tensor for each peer."""
        for rank in self._peers:
            if back[rank].numel():
                bucket.under_way.append(_begun(dist.irecv(back[rank], rank, tag=tag)))
        for rank in self._peers:
            if out[rank].numel():
                bucket.under_way.append(_begun(dist.isend(out[rank], rank, tag=tag)))


def _begun(work: dist.Work | None) -> dist.Work:
    assert work is not None, "only processes outside the group get none"
    return work


def _finish(bucket: _Bucket) -> None:
    while bucket.under_way:
        bucket.under_way.pop(0).wait()
