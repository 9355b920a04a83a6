"""Whether ranks that are started again go on: read from the part of the store that outlives their lives."""

from __future__ import annotations

import os

import pytest
import torch

from veilray.errors import LostRankError, StoppedError, ToldElsewhere, TrainingError
from veilray.parallel.group import Group
from veilray.parallel.restart import OVER, comes_back, leave_if_over


def test_a_rank_that_is_started_again_without_its_launcher_s_counting_it_leaves_what_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    store = torch.distributed.HashStore()
    leave_if_over(store, 0)
    leave_if_over(store, 0)  # nothing is over
    store.set(OVER, "2")
    leave_if_over(store, 1)  # another rank of the launcher, started for the first time
    with pytest.raises(ToldElsewhere) as left:
        leave_if_over(store, 0)
    assert left.value.exit_status == 2
    monkeypatch.setattr(os, "getppid", lambda: -1)
    leave_if_over(store, 0)  # of a new launcher


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
