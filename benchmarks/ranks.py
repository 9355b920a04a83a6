"""Start a benchmark's own script as several ranks on this machine, in torchrun's environment, over gloo on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def run_ranks(script: str, arguments: Sequence[str], *, ranks: int, threads: int = 1) -> Any:
    """Run `python SCRIPT ARGUMENTS` on every rank and return what rank 0 printed last, which is JSON.

    Raises RuntimeError where a rank fails; the others are ended then.
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
    processes = [
        subprocess.Popen(
            [sys.executable, script, *arguments],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said, _ = processes[0].communicate()
        failed = [rank for rank, process in enumerate(processes) if process.wait()]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    if failed:
        raise RuntimeError(f"rank {failed[0]} of {ranks} failed; its own message says why")
    return json.loads(said.splitlines()[-1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
