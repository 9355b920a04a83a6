"""One command as several ranks on this machine: torchrun, run inside this process."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from veilray.errors import ToldElsewhere, UsageError, VeilrayError
from veilray.parallel.workers import available_cores

if TYPE_CHECKING:
    import torch

RESTARTS = 3
"""How often ranks are started again after one was killed or hung: enough for a passing fault, few for a lasting one."""


def under_launcher() -> bool:
    """Whether this process is a rank that torchrun has started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def without_option(arguments: Sequence[str], name: str) -> list[str]:
    """The arguments of a command without an option that takes a value: `--name value` or `--name=value`."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == name:
            next(words, None)
        elif not word.startswith(f"{name}="):
            kept.append(word)
    return kept


def run_ranks(arguments: Sequence[str], *, ranks: int, device: torch.device) -> None:
    """Run `veilray ARGUMENTS` as several ranks, as `torchrun --standalone` does, and wait for them.

    Where a rank fails all are stopped and, up to three times, started again. Cores are shared out among ranks. Raises
    ToldElsewhere with a rank's exit status where it has told the user why, VeilrayError where none could.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // ranks)))
    if sys.platform == "linux" and device.type == "cpu":
        # All ranks are here; a host name that does not resolve is no hindrance.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Its log repeats what the ranks say, at length.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    launcher = ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={RESTARTS}"]
    try:
        main([*launcher, "-m", "veilray", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            raise ToldElsewhere(failure.exitcode) from None
        why = " (which a system that is out of memory sends)" if failure.exitcode == -signal.SIGKILL else ""
        raise VeilrayError(
            f"rank {rank} was ended by {failure.signal_name()}{why}, after {RESTARTS} restarts; --resume goes on from "
            "the last checkpoint"
        ) from None
    except SignalException:
        raise ToldElsewhere(VeilrayError.exit_status) from None


def check_devices(ranks: int, device: torch.device, *, shared: bool) -> None:
    """Raise UsageError unless this machine has a device for each rank; on a CPU ranks share the cores."""
    import torch

    if ranks < 1:
        raise UsageError(f"--devices {ranks}: give a number of devices, 1 or more")
    if ranks == 1 or shared:
        return
    there = torch.cuda.device_count() if device.type == "cuda" else available_cores()
    if device.type == "mps":
        raise UsageError(f"--devices {ranks}: there is one mps device; ddp works on CUDA and on the CPU")
    if ranks > there:
        kind = "GPUs" if device.type == "cuda" else "cores"
        raise UsageError(f"--devices {ranks}: this machine has {there} {kind}")
