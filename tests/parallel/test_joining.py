"""Where a batch system starts the ranks, rank 0 holds the store: how the others wait for it, and are told to end."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.command_line import PROCESS
from tests.distributed.harness import finish, start_ranks
from tests.ports import free_port

MEET = """
import sys, time
from veilray.cli import main
from veilray.errors import LostRankError
from veilray.parallel.joining import met

def command(**options):
    try:
        with met(timeout=float(sys.argv[1])) as ranks:
            print(ranks.gather(ranks.rank))
    except LostRankError:
        time.sleep(float(sys.argv[2]))
        raise

main.app = command
main.run()
"""


def _begin(rank: int, *, port: int, timeout: float, lingers: float = 0.0) -> list[subprocess.Popen[str]]:
    """One rank of two, that waits `timeout` seconds for the other, and `lingers` where that was in vain."""
    return _begin_one([sys.executable, "-c", MEET, str(timeout), str(lingers)], rank, port=port)


def _begin_one(command: Sequence[str], rank: int, *, port: int) -> list[subprocess.Popen[str]]:
    return start_ranks([command], port=port, environment={"RANK": str(rank), "WORLD_SIZE": "2"})


@pytest.fixture
def foreign() -> Iterator[socket.socket]:
    """A program that takes what comes to its port, and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(60)
        yield listener


def _port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


@pytest.mark.slow
def test_a_rank_that_waits_at_the_port_of_another_program_hears_that_it_is_to_end(
    foreign: socket.socket, tmp_path: Path
) -> None:
    command = [*PROCESS, "train", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    processes = _begin_one(command, 1, port=_port(foreign))
    connection, _ = foreign.accept()
    with connection:
        time.sleep(0.5)
        processes[0].send_signal(signal.SIGTERM)
        (ended,) = finish(processes, timeout=30)
    assert (ended.status, ended.err) == (1, "veilray: stopped\n")


@pytest.mark.slow
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_rank_that_finds_another_program_says_so_in_time(foreign: socket.socket, answer: bytes) -> None:
    # Longer than torch goes on trying, of which nobody wants to hear.
    processes = _begin(1, port=_port(foreign), timeout=2, lingers=4)
    connections = [foreign.accept()[0]]
    connections[0].sendall(answer)
    foreign.settimeout(0.1)
    while processes[0].poll() is None:
        with contextlib.suppress(TimeoutError):
            connections.append(foreign.accept()[0])
            connections[-1].sendall(answer)
    (ended,) = finish(processes)
    for connection in connections:
        connection.close()
    assert ended.status == 1
    assert f"cannot be reached through 127.0.0.1:{_port(foreign)}: rank 0 did not answer within 2 s" in ended.err
    assert len(ended.lines) == 1, ended.err


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
def test_ranks_that_start_far_apart_meet(first: int) -> None:
    port = free_port()
    processes = _begin(first, port=port, timeout=60)
    time.sleep(6)
    processes += _begin(1 - first, port=port, timeout=60)
    ends = finish(processes)
    assert [ended.status for ended in ends] == [0, 0], ends[0].err + ends[1].err
    assert [ended.out for ended in ends] == ["[0, 1]\n"] * 2
    assert all(ended.err == "" for ended in ends)
