"""Signals that wait for the end of a step, and what they do once the block is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from veilray.errors import LostRankError
from veilray.parallel.ending import SIGNALS, interrupt_once
from veilray.training.interruption import deferred_interruption


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Those of a rank; afterwards the ones before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    interrupt_once()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _tell() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("patient", [False, True])
def test_the_first_signal_is_noted_and_the_second_interrupts_who_is_not_patient(patient: bool) -> None:
    with (
        nullcontext() if patient else pytest.raises(KeyboardInterrupt),
        deferred_interruption(patient=patient) as interruption,
    ):
        _tell()
        assert interruption.requested
        _tell()


def test_an_error_of_a_rank_is_not_replaced_by_the_launchers_signal() -> None:
    with pytest.raises(LostRankError), deferred_interruption(patient=True):
        raise LostRankError("another rank has ended")
    _tell()


@pytest.mark.parametrize("patient", [False, True])
def test_after_a_block_in_which_nothing_happened_signals_interrupt_again(patient: bool) -> None:
    with deferred_interruption(patient=patient):
        pass
    with pytest.raises(KeyboardInterrupt):
        _tell()
