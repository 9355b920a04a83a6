"""Lives of a group in one store: each is apart from those before it, whatever they left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from torch.distributed import HashStore, Store

from veilray.parallel.rendezvous import HERE, LIFE, new_life


def _store() -> Store:
    store = HashStore()
    store.set_timeout(timedelta(seconds=20))
    return store


def _live(store: Store, ranks: int, *, timeout: float = 20.0) -> list[Store | Exception]:
    """What the ranks of one life get, each in a thread of its own."""
    found: list[Store | Exception] = [RuntimeError("nothing")] * ranks

    def join(rank: int) -> None:
        try:
            found[rank] = new_life(store, rank=rank, world_size=ranks, timeout=timeout)
        except RuntimeError as error:
            found[rank] = error

    _together(*(lambda rank=rank: join(rank) for rank in range(ranks)))
    return found


def _together(*actions: Callable[[], None]) -> None:
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("worlds", [(2, 2, 2), (1, 1), (3, 2, 4)])
def test_each_life_has_a_clean_part_that_its_ranks_share(worlds: tuple[int, ...]) -> None:
    store = _store()
    for life, ranks in enumerate(worlds):
        parts = _live(store, ranks)
        for rank, part in enumerate(parts):
            assert isinstance(part, Store), part
            assert part.add("joined", 1) == rank + 1, "what an earlier life wrote is seen"
            part.set("address", str(life))
        assert {part.get("address") for part in parts if isinstance(part, Store)} == {str(life).encode()}


@pytest.mark.parametrize("moment", ["here", "answered"])
def test_what_a_rank_left_that_died_while_joining_does_no_harm(moment: str) -> None:
    store = _store()
    if moment == "here":
        for rank in range(3):
            store.set(f"{HERE}/{rank}", "dead")
    else:  # it had answered a call; so had the others, and the life never began
        store.set(f"{HERE}/1", "dead")
        store.set(LIFE, '{"life": "first", "called": ["lead", "dead", "other"]}')
        store.add(f"{LIFE}/first/answers", 2)
    parts = _live(store, 3)
    assert [part.add("joined", 1) if isinstance(part, Store) else part for part in parts] == [1, 2, 3]


def test_a_rank_that_never_comes_is_an_error_in_time() -> None:
    store = _store()
    store.set(f"{HERE}/1", "dead")
    with pytest.raises(RuntimeError, match="did not all come within 0 s"):
        new_life(store, rank=0, world_size=2, timeout=0.2)
    with pytest.raises(RuntimeError, match="rank 0 did not call within 0 s"):
        new_life(_store(), rank=1, world_size=2, timeout=0.2)
