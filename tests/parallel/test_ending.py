"""A rank that is told to end says why, once, whichever moment the signal comes at, and prints no traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from tests.distributed.harness import finish, start_ranks

from veilray.errors import DataError
from veilray.parallel.ending import SIGNALS, interrupt_once, uninterrupted_end

# As a rank that a launcher has started again, whose others have ended in the life before.
ENVIRONMENT = {"TORCHELASTIC_RESTART_COUNT": "1"}
TOLD = """
import contextlib, os, signal, sys, time
import torch
from veilray.cli import main
from veilray.errors import LostRankError
from veilray.parallel.joining import joined, met

def tell(number=signal.SIGTERM):
    os.kill(os.getpid(), number)

@contextlib.contextmanager
def slow_to_leave():
    try:
        yield
    finally:
        tell()
        time.sleep(0.1)

def say(message):
    tell()
    original(message)
    tell()

def command(**options):
    with met(timeout=60) as ranks, slow_to_leave(), joined(torch.device("cpu"), timeout=60, ranks=ranks):
        if sys.argv[1] == "error":
            raise LostRankError("the other is lost")
        tell(getattr(signal, sys.argv[1]))
        time.sleep(60)

original, main._say, main.app = main._say, say, command
main.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("error", "veilray: the other is lost"),
        ("SIGTERM", "veilray: another rank has ended or does not answer, or the job was stopped: "),
        ("SIGINT", "veilray: stopped"),
    ],
)
def test_a_rank_that_is_told_to_end_says_why_once(case: str, said: str) -> None:
    command = [sys.executable, "-c", TOLD, case]
    (left,) = finish(start_ranks([command], environment=ENVIRONMENT))
    assert left.status == 1
    (line,) = left.lines
    assert line.startswith(said)


@pytest.fixture
def handlers() -> Iterator[None]:
    """The handlers of this process, put back afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_the_first_signal_interrupts_and_says_which_it_was() -> None:
    interrupt_once()
    with pytest.raises(KeyboardInterrupt) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.args == (signal.SIGTERM,)
    for number in SIGNALS:
        os.kill(os.getpid(), number)


@pytest.mark.usefixtures("handlers")
def test_an_error_that_leaves_a_block_is_not_replaced_by_a_signal() -> None:
    interrupt_once()
    with pytest.raises(DataError), uninterrupted_end():
        raise DataError("damaged")
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("handlers")
def test_a_block_without_an_error_can_be_interrupted_afterwards() -> None:
    interrupt_once()
    with uninterrupted_end():
        pass
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
