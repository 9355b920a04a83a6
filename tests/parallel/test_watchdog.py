"""The watchdog: a rank that hangs is ended with one line, one that gets on is left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from tests.distributed.harness import finish, start_ranks

from veilray.parallel.group import ALONE
from veilray.parallel.watchdog import EXIT_STATUS, Watchdog

# The peer never comes to the exchange.
HANGS = """
import time, torch
from veilray.parallel.joining import joined
from veilray.parallel.watchdog import Watchdog
with Watchdog(timeout=6.0) as watchdog, joined(torch.device("cpu"), timeout=300) as group:
    watchdog.watch(group)
    print("watched", flush=True)
    if group.rank == 1:
        while True:
            watchdog.beat()
            time.sleep(0.1)
    group.barrier()
"""

# However far behind a busy machine leaves one of them.
PATIENT = """
from veilray.parallel import watchdog
watchdog.LEAVING_SECONDS, watchdog._STORE_SECONDS = 60.0, 30.0
"""

# torchrun tells it to end meanwhile, and no handler runs.
TOLD = """
import os, signal, threading, torch
from veilray.parallel.ending import pass_over_signals
from veilray.parallel.joining import joined
from veilray.parallel.watchdog import Watchdog
pass_over_signals()
with Watchdog(timeout=300.0, told_timeout=1.0) as watchdog, joined(torch.device("cpu"), timeout=300) as group:
    watchdog.watch(group)
    if group.rank == 1:
        threading.Event().wait()
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]).start()
    group.barrier()
"""

GETS_ON = """
import time, torch
from veilray.parallel.joining import joined
from veilray.parallel.watchdog import Watchdog
with Watchdog(timeout=6.0) as watchdog, joined(torch.device("cpu"), timeout=60) as group:
    watchdog.watch(group)
    for _ in range(28):
        time.sleep(0.25)
        watchdog.beat()
time.sleep(6.5)
print("done")
"""


def _commands(script: str, ranks: int) -> list[list[str]]:
    return [[sys.executable, "-c", script]] * ranks


@pytest.mark.slow
def test_a_rank_that_waits_in_vain_is_ended_with_one_line() -> None:
    waiting, beating = start_ranks(_commands(HANGS, 2))
    try:
        waiting.wait(timeout=120)
        assert beating.poll() is None, "the rank that beats is left alone"
    finally:
        beating.kill()
    left = finish([waiting, beating])[0]
    assert left.status == EXIT_STATUS
    assert left.out == "watched\n"
    (line,) = left.lines
    assert line.startswith("veilray: rank 0 has not got on for 6 s")


@pytest.mark.slow
def test_a_rank_that_waits_in_vain_and_is_told_to_end_says_so() -> None:
    waiting, absent = start_ranks(_commands(TOLD, 2), environment={"TORCHELASTIC_RUN_ID": "one"})
    try:
        waiting.wait(timeout=120)
    finally:
        absent.kill()
    left = finish([waiting, absent])[0]
    assert left.status == EXIT_STATUS
    (line,) = left.lines
    assert line.startswith(
        "veilray: another rank has ended or does not answer, or the job was stopped: rank 0 was told"
    )


@pytest.mark.slow
def test_a_rank_that_gets_on_is_left_alone_and_is_not_watched_afterwards() -> None:
    (left,) = finish(start_ranks(_commands(GETS_ON, 1)))
    assert (left.status, left.out, left.err) == (0, "done\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_two_ranks_that_hang_say_so_once(late: int) -> None:
    # Rank 0 holds what they ask whether it is said: it must not take it along when it is not the last to end.
    script = PATIENT + HANGS.replace("if group.rank == 1", "if False").replace(
        "group.barrier()", f"time.sleep(group.rank == {late})\n    watchdog.beat()\n    time.sleep(60)"
    )
    left = finish(start_ranks(_commands(script, 2)))
    assert [one.status for one in left] == [EXIT_STATUS, EXIT_STATUS]
    assert sum(len(one.lines) for one in left) == 1


def test_a_process_that_is_alone_is_not_watched() -> None:
    with Watchdog(timeout=0.05) as watchdog:
        watchdog.watch(ALONE)
        time.sleep(0.3)  # it would have ended the process
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, veilray.parallel.watchdog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
