"""Whether ranks that are started again go on: read from the part of the store that outlives their lives."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from veilray.errors import LostRankError, StoppedError, ToldElsewhere, TrainingError
from veilray.parallel import restart
from veilray.parallel.group import Group
from veilray.parallel.restart import OVER, comes_back, leave_if_over


def _leave(store: torch.distributed.Store, *, local_rank: int = 0, world_size: int = 1) -> int | None:
    """The exit status with which a rank leaves what is over; None where it goes on; signals reach the test alone."""
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(leave_if_over, store, local_rank=local_rank, world_size=world_size).result()
    except ToldElsewhere as left:
        return left.exit_status
    return None


def test_a_rank_that_is_started_again_without_its_launcher_s_counting_it_leaves_what_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    store = torch.distributed.HashStore()
    assert _leave(store) is None
    assert _leave(store) is None, "nothing is over"
    store.set(OVER, "2")
    assert _leave(store, local_rank=1) is None, "another rank of the launcher, started for the first time"
    assert _leave(store) == 2
    monkeypatch.setattr(os, "getppid", lambda: -1)
    assert _leave(store) is None, "of a new launcher"


def test_the_ranks_of_each_life_wait_for_each_other_before_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whose launcher holds the store must not end while a rank of another machine has still to ask it.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    store = torch.distributed.HashStore()
    store.set(OVER, "2")
    with ThreadPoolExecutor(2) as ranks:
        for _ in range(2):
            first = ranks.submit(_leave, store, world_size=2)
            time.sleep(0.2)
            assert not first.done()
            last = ranks.submit(_leave, store, local_rank=1, world_size=2)
            assert (first.result(timeout=10), last.result(timeout=10)) == (2, 2)


def test_a_rank_does_not_wait_for_ever_for_one_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(restart, "GATHERING_SECONDS", 0.1)
    store = torch.distributed.HashStore()
    store.set(OVER, "2")
    assert _leave(store, world_size=2) == 2


@pytest.mark.parametrize("error", [LostRankError("lost"), StoppedError("stopped"), KeyboardInterrupt()])
def test_a_lost_rank_and_a_stop_are_gone_on_after(error: BaseException) -> None:
    assert not comes_back(error)
    assert comes_back(TrainingError("the loss is nan"))


def test_a_life_knows_that_one_before_it_has_begun() -> None:
    store = torch.distributed.HashStore()

    def life(name: str) -> Group:
        return Group(backend="store", _store=torch.distributed.PrefixStore(name, store))

    assert not life("first").has_begun()
    assert not life("second").has_begun(), "the first one ended before it began"
    life("second").begin()
    assert life("third").has_begun()
