"""Groups of ranks: what they exchange arrives whole, and an error on one is an error on all, told once."""

from __future__ import annotations

import json
import math
import socket
import sys
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.distributed.harness import finish, run_ranks, start_ranks
from tests.ports import free_port

from veilray.errors import CohortError, UsageError
from veilray.parallel import group
from veilray.parallel.group import ALONE, Group, fails_together, share
from veilray.parallel.joining import joined

CPU = torch.device("cpu")

EXCHANGE = """
import json, torch
from veilray.parallel.joining import joined
with joined(torch.device("cpu"), timeout=60) as group:
    total = group.sum_(torch.tensor([group.rank + 1.0, 10.0], dtype=torch.float64))
    first = group.sum_later_(torch.ones(3) * group.rank)
    second = group.sum_later_(torch.ones(2))
    turned = group.sum_((torch.arange(6).view(2, 3) * (group.rank + 1)).t())
    gathered = group.gather({"rank": group.rank, "text": "\\u00e9" * (100 * group.rank)})
    said = group.broadcast(["lead", None] if group.is_lead else "other")
    group.barrier()
    print(json.dumps([group.rank, group.world_size, group.local_rank, group.local_world_size, group.backend,
                      total.tolist(), second().tolist(), first().tolist(), turned.tolist(), gathered, said]))
"""

FAILURE = """
import sys, torch
from veilray.cli import main
from veilray.errors import CohortError
from veilray.parallel.group import fails_together
from veilray.parallel.joining import joined

def command():
    with joined(torch.device("cpu"), timeout=60) as group:
        with fails_together(group):
            if str(group.rank) in sys.argv[1]:
                raise CohortError("the cohort is damaged")
        print("went on")

main.app = lambda **options: command()
sys.exit(main._status([]))
"""

# Rank 1 does what a launcher does once it has ended: it tells the lead to end, which has not come to telling yet.
SLOW_TO_TELL = """
import os, signal, sys, time, torch
from veilray.cli import main
from veilray.errors import CohortError
from veilray.parallel.ending import interrupt_once
from veilray.parallel.group import Group, fails_together
from veilray.parallel.joining import joined

interrupt_once()
lead = []
let_lead_tell = Group.let_lead_tell
def slowly(group):
    if group.is_lead:
        time.sleep(1.0)
    let_lead_tell(group)
Group.let_lead_tell = slowly

def command(**options):
    with joined(torch.device("cpu"), timeout=60) as group:
        lead.append(group.gather(os.getpid())[0])
        with fails_together(group):
            raise CohortError("the cohort is damaged")

main.app = command
status = main._status([])
if os.getpid() not in lead:
    os.kill(lead[0], signal.SIGTERM)
sys.exit(status)
"""

ALONE_IN_ERROR = """
import sys, torch
from veilray.cli import main
from veilray.parallel.joining import joined

def command():
    with joined(torch.device("cpu"), timeout=60) as group:
        if group.rank == 1:
            import os
            os._exit(9)
        group.sum_(torch.ones(1))

main.app = lambda **options: command()
sys.exit(main._status([]))
"""

# Rank 0 holds the store; rank 1 comes to its own error long after.
LATE = """
import sys, time, torch
from veilray.cli import main
from veilray.parallel import joining
from veilray.parallel.joining import joined

joining.LEAVING_SECONDS = 60.0  # however far behind a busy machine leaves rank 1

def command():
    with joined(torch.device("cpu"), timeout=60) as group:
        time.sleep(1.5 * group.rank)
        raise ZeroDivisionError("division by zero")

main.app = lambda **options: command()
sys.exit(main._status([]))
"""

GONE = """
import os, time
from veilray.parallel.joining import met
with met(timeout=60) as group:
    group.gather(None)
    if group.is_lead:
        os._exit(9)
    time.sleep(1.0)
    print(group.is_first("error"))
    group.end_for_good(1)
"""

BEFORE_JOINING = """
import json, sys, torch
from veilray.cli import main
from veilray.errors import UsageError
from veilray.parallel.group import fails_together
from veilray.parallel.joining import joined, met

def command():
    with met(timeout=60) as ranks:
        assert not torch.distributed.is_initialized()
        seen = [ranks.gather([ranks.rank, "\u00e9"]), ranks.broadcast("lead" if ranks.is_lead else None)]
        with fails_together(ranks):
            if str(ranks.rank) in sys.argv[1]:
                raise UsageError("no such file")
        with joined(torch.device("cpu"), timeout=60, ranks=ranks) as group:
            print(json.dumps([*seen, group.gather(group.rank), group.backend]))
            if str(group.rank) in sys.argv[2]:
                raise ZeroDivisionError("division by zero")
            group.barrier()

main.app = lambda **options: command()
sys.exit(main._status([]))
"""


# With a store that waits for 2 seconds; rank 1 comes to the exchange after 4, or never.
SLOW_TO_PREPARE = """
import os, signal, sys, time
from datetime import timedelta
from veilray.cli import main
from veilray.parallel.joining import met

def command(**options):
    with met(timeout=60) as ranks:
        ranks.gather("here")
        ranks._store.set_timeout(timedelta(seconds=2))
        if not ranks.is_lead:
            if sys.argv[1] == "told to end":
                os.kill(int(ranks.gather("")[0]), signal.SIGTERM)
            time.sleep(4)
        elif sys.argv[1] == "told to end":
            ranks.gather(str(os.getpid()))
        ranks.gather("ready")
        print("ready")

main.app = command
main.run()
"""


def _lines(text: str) -> list[str]:
    """What a rank said, but for gloo's own greeting."""
    return [line for line in text.splitlines() if not line.startswith("[Gloo]")]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])  # two exchange sums another way
def test_ranks_exchange_tensors_and_json(ranks: int) -> None:
    results = run_ranks(EXCHANGE, ranks=ranks)
    assert [result.status for result in results] == [0] * ranks, "".join(result.err for result in results)
    added = sum(range(ranks))
    for rank, result in enumerate(results):
        report = json.loads(_lines(result.out)[-1])
        assert report[:5] == [rank, ranks, rank, ranks, "gloo"]
        assert report[5:8] == [[added + ranks, 10.0 * ranks], [ranks, ranks], [added, added, added]]
        times = added + ranks
        assert report[8] == [[0, 3 * times], [times, 4 * times], [2 * times, 5 * times]]
        assert report[9] == [{"rank": other, "text": "é" * (100 * other)} for other in range(ranks)]
        assert report[10] == ["lead", None]


@pytest.mark.slow
def test_a_lead_that_is_slow_to_tell_an_error_is_not_told_to_end_before() -> None:
    results = run_ranks(SLOW_TO_TELL)
    assert [result.status for result in results] == [3, 3]
    assert [_lines(result.err) for result in results] == [["veilray: the cohort is damaged"], []]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "said"), [("1", f"veilray: rank 1 on {socket.gethostname()}: the cohort is damaged"), ("01", None)]
)
def test_an_error_on_any_rank_ends_all_and_is_told_once(ranks: str, said: str | None) -> None:
    results = run_ranks(FAILURE, arguments=[ranks])
    assert [result.status for result in results] == [3, 3]
    assert [_lines(result.out) for result in results] == [[], []]
    assert _lines(results[0].err) == [said or "veilray: the cohort is damaged"]
    assert _lines(results[1].err) == []


@pytest.mark.slow
def test_ranks_agree_before_they_join() -> None:
    results = run_ranks(BEFORE_JOINING, arguments=["none", "none"])
    assert [result.status for result in results] == [0, 0], results[0].err + results[1].err
    for result in results:
        assert json.loads(_lines(result.out)[-1]) == [[[0, "é"], [1, "é"]], "lead", [0, 1], "gloo"]


@pytest.mark.slow
def test_a_rank_that_takes_longer_to_prepare_than_to_meet_is_waited_for() -> None:
    results = run_ranks(SLOW_TO_PREPARE, arguments=["slow"])
    assert [_lines(result.out) for result in results] == [["ready"], ["ready"]], results[0].err + results[1].err


@pytest.mark.slow
def test_a_rank_that_waits_for_another_s_preparation_says_so_when_it_is_told_to_end() -> None:
    lead, _ = run_ranks(SLOW_TO_PREPARE, arguments=["told to end"])
    assert lead.status == 1
    (line,) = _lines(lead.err)
    assert "this rank was told to end (SIGTERM)" in line


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "01"])
def test_an_error_before_they_join_is_told_once(ranks: str) -> None:
    results = run_ranks(BEFORE_JOINING, arguments=[ranks, "none"])
    assert [result.status for result in results] == [2, 2]
    (line,) = [line for result in results for line in _lines(result.err)]
    assert line.endswith("no such file")
    assert ("rank 1" in line) == (ranks == "1")


@pytest.mark.slow
def test_an_error_that_nobody_foresaw_is_told_once() -> None:
    results = run_ranks(BEFORE_JOINING, arguments=["none", "1"])
    assert [result.status for result in results] == [1, 1]
    (line,) = [line for result in results for line in _lines(result.err)]
    assert "unexpected ZeroDivisionError: division by zero" in line


@pytest.mark.slow
def test_a_rank_that_ends_is_noticed_by_the_others() -> None:
    results = run_ranks(ALONE_IN_ERROR)
    assert [result.status for result in results] == [1, 9]
    assert len(_lines(results[0].err)) == 1
    assert "another rank has ended" in results[0].err
    assert ".cc:" not in results[0].err  # no places in gloo's source


@pytest.mark.slow
def test_an_error_that_comes_late_to_another_rank_is_told_once() -> None:
    results = run_ranks(LATE)
    assert [result.status for result in results] == [1, 1]
    assert [len(_lines(result.err)) for result in results] == [1, 0]


@pytest.mark.slow
def test_a_store_that_has_gone_is_asked_without_noise() -> None:
    results = run_ranks(GONE)
    assert [result.status for result in results] == [9, 0]
    assert _lines(results[1].out) == ["True"]
    assert results[1].err == ""


@pytest.mark.slow
def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        script = FAILURE.replace("timeout=60", "timeout=5")
        command = [sys.executable, "-c", script, "none"]
        result = finish(start_ranks([command], port=port))[0]
    assert result.status == 2
    assert f"port of 127.0.0.1:{port} is in use" in result.err
    assert len(_lines(result.err)) == 1


def test_alone_every_exchange_is_with_oneself() -> None:
    with joined(CPU) as group:
        assert group == ALONE
    value = torch.ones(2)
    assert ALONE.sum_(value) is value
    assert ALONE.gather([1]) == [[1]]
    assert ALONE.broadcast("x") == "x"
    ALONE.barrier()
    assert ALONE.is_lead
    assert ALONE.is_first("anything")
    with pytest.raises(CohortError, match="as it was"), fails_together(ALONE):
        raise CohortError("as it was")


def test_a_wrong_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK is 'first'"), joined(CPU):
        pass


@given(count=st.integers(0, 60), world_size=st.integers(1, 9))
def test_shares_are_the_whole_and_of_like_size(count: int, world_size: int) -> None:
    groups = [Group(rank, world_size) for rank in range(world_size)]
    parts: list[Sequence[Any]] = [share(list(range(count)), group) for group in groups]
    assert [item for part in parts for item in part] == list(range(count))
    assert [list(share(count, group)) for group in groups] == [list(part) for part in parts]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_ports_are_free_and_none_comes_twice() -> None:
    found = [free_port() for _ in range(5)]
    assert len(set(found)) == 5
    for port in found:
        with socket.socket() as own:
            own.bind(("127.0.0.1", port))


class Exchange:
    """An exchange that is done after being asked some number of times."""

    def __init__(self, asked: float) -> None:
        self.left = asked

    def is_completed(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_rank_stays_awake_until_an_exchange_is_done_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(count())
    monkeypatch.setattr(group.time, "monotonic", lambda: next(seconds) / 1000)  # type: ignore[attr-defined]
    short, endless = Exchange(3), Exchange(math.inf)
    group._stay_awake(short)
    assert short.left < 0
    group._stay_awake(endless)
    assert next(seconds) < 100
