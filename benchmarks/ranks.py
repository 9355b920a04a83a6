"""Start a benchmark's own script as several ranks on this machine, in torchrun's environment, over gloo on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

GRACE_SECONDS = 5.0
"""Longest that ranks go on after one has failed: for their own last words."""


def run_ranks(script: str, arguments: Sequence[str], *, ranks: int, threads: int = 1) -> Any:
    """Run `python SCRIPT ARGUMENTS` on every rank and return what rank 0 printed last, which is JSON.

    Raises RuntimeError where a rank fails, whichever it is; the others are ended then.
    """
    place = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads),
        "THP_MEM_ALLOC_ENABLE": "1",  # as the command line sets it
    }
    if sys.platform == "linux":
        place["GLOO_SOCKET_IFNAME"] = "lo"
    with tempfile.TemporaryFile("w+") as said:
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(ranks):
                own = {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                out = said if rank == 0 else subprocess.DEVNULL
                processes.append(subprocess.Popen([sys.executable, script, *arguments], env=own, stdout=out))
            failed = _first_failed(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if failed is not None:
            raise RuntimeError(f"rank {failed} of {ranks} failed; its own message says why")
        said.seek(0)
        return json.loads(said.read().splitlines()[-1])


def _first_failed(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all have ended, or until one has failed and the others have had time to end; which one it was."""
    failed, deadline = None, float("inf")
    while True:
        states = [process.poll() for process in processes]
        if failed is None and any(states):
            failed = next(rank for rank, status in enumerate(states) if status)
            deadline = time.monotonic() + GRACE_SECONDS
        if None not in states or time.monotonic() > deadline:
            return failed
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
