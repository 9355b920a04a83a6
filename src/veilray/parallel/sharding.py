"""Work shared out over ranks: each item is done once, by one rank, and the lead gets every result in the items' order.

Items are named, not sent: every rank lists all of them, in the same order, and takes its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, TypeVar

from veilray.errors import DataError
from veilray.parallel.group import Group, fails_together, lost_ranks_explained
from veilray.parallel.workers import ordered_map

Item = TypeVar("Item")
Result = TypeVar("Result")
Parcel = tuple[Any, bytes]
"""A result on its way to the lead: what JSON can hold, and bytes."""

# Results that a rank collects for each worker (of the rank with the most) before it sends them: the lead holds as many
# of every rank.
ROUND = 2


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    consume: Callable[[Result], None],
    *,
    group: Group,
    workers: int,
    label: Callable[[Item], str],
    pack: Callable[[Result], Parcel],
    unpack: Callable[[Any, bytes], Result],
) -> None:
    """Compute `function` of each item on all ranks and hand the results to the lead's `consume`, in the items' order.

    Each rank takes every world_size-th item and computes with `workers` processes. Results cross to the lead as `pack`
    makes them, round by round, so that memory does not grow with their number. `label` names an item: ranks whose
    lists differ make a DataError. What fails on one rank, in `consume` too, ends all, and is told once.
    """
    if not group.joined:
        for result in ordered_map(function, items, workers=workers):
            consume(result)
        return
    listed = Listing(items, label)
    own_items = islice(listed, group.rank, None, group.world_size)
    ahead = ROUND * max(group.gather(workers))  # of all ranks alike, however many cores: only then are rounds in order
    waiting: list[Result] = []
    with closing(ordered_map(function, own_items, workers=workers)) as results:
        while True:
            own: list[Result] = []
            with fails_together(group):
                for result in waiting:
                    consume(result)
                own = list(islice(results, ahead))
                parcels = [] if group.is_lead else [pack(result) for result in own]
            if not any(group.gather(len(own))):
                break
            received = _to_lead(parcels, group)
            if group.is_lead:
                waiting = _interleaved([own, *([unpack(*parcel) for parcel in part] for part in received)])
    listed.check_same(group)


def owner(name: str, group: Group) -> int:
    """The rank that does what is called `name`: the same on every machine, spread evenly over names.

    Things that could clash, such as files of one name, fall to one rank, which sees them in their order.
    """
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()) % (
        group.world_size
    )


def merged(own: Sequence[tuple[int, Any]], group: Group) -> list[Any]:
    """All ranks' values in the order of their numbers, on every rank; `own` are (number, what JSON can hold).

    Each number belongs to one value of one rank.
    """
    numbered = sorted((entry for part in group.gather([list(entry) for entry in own]) for entry in part), key=_number)
    return [value for _, value in numbered]


class Listing(Iterable[Item]):
    """Passes items through and keeps a digest of their labels, to be compared between ranks at the end."""

    def __init__(self, items: Iterable[Item], label: Callable[[Item], str]) -> None:
        self._items = items
        self._label = label
        self._digest = hashlib.sha256()
        self._count = 0

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            self._digest.update(self._label(item).encode(errors="surrogateescape") + b"\0")
            self._count += 1
            yield item

    def check_same(self, group: Group) -> None:
        """Raise DataError, on all ranks, where one listed other items than rank 0."""
        seen = group.gather([self._count, self._digest.hexdigest()])
        with fails_together(group):
            for rank, one in enumerate(seen):
                if one != seen[0]:
                    raise DataError(
                        f"rank {rank} lists {one[0]} files, rank 0 {seen[0][0]}"
                        + ("" if one[0] != seen[0][0] else ", of other names")
                        + ": give every rank the same sources, on a shared disk or under the same path"
                    )


def other_rank(own: object, group: Group) -> int | None:
    """The first rank whose value, which JSON can hold, is not rank 0's; None where all are alike."""
    found = group.gather(own)
    return next((rank for rank, one in enumerate(found) if one != found[0]), None)


def _to_lead(parcels: list[Parcel], group: Group) -> list[list[Parcel]]:
    """The parcels of ranks 1, 2, ... on the lead, nothing elsewhere."""
    import torch
    import torch.distributed as dist

    headers = group.gather([] if group.is_lead else [[header, len(data)] for header, data in parcels])
    received: list[list[Parcel]] = []
    with lost_ranks_explained():
        for rank in range(1, group.world_size):
            content = torch.empty(sum(length for _, length in headers[rank]), dtype=torch.uint8)
            if group.rank == rank and len(content):
                dist.send(torch.frombuffer(bytearray(b"".join(data for _, data in parcels)), dtype=torch.uint8), dst=0)
            elif group.is_lead:
                if len(content):
                    dist.recv(content, src=rank)
                received.append(list(_cut(headers[rank], content.numpy().tobytes())))
    return received


def _cut(headers: list[list[Any]], content: bytes) -> Iterator[Parcel]:
    start = 0
    for header, length in headers:
        yield header, content[start : start + length]
        start += length


def _interleaved(parts: list[list[Result]]) -> list[Result]:
    """One of each rank in turn, which is how the items were dealt out."""
    longest = max(len(part) for part in parts)
    return [part[place] for place in range(longest) for part in parts if place < len(part)]


def _number(entry: list[Any]) -> int:
    return int(entry[0])
