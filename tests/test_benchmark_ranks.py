"""Benchmarks' own ranks: what rank 0 says comes back, and a rank that fails ends all, whichever it is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CALL = "import sys; from ranks import run_ranks; print(run_ranks(sys.argv[1], ['x'], ranks=2, threads=3))"
SCRIPT = """
import json, os, sys, time
rank = int(os.environ["RANK"])
if {failing} == rank:
    sys.exit(7)
if {failing} >= 0:
    time.sleep(300)
print("something else")
print(json.dumps([rank, os.environ["OMP_NUM_THREADS"], sys.argv[1:]]))
"""


def _run(folder: Path, failing: int) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(failing=failing), encoding="utf-8")
    command = [sys.executable, "-c", CALL, str(script)]
    return subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=120)


def test_what_rank_0_printed_last_is_returned(tmp_path: Path) -> None:
    done = _run(tmp_path, -1)
    assert done.stdout == "[0, '3', ['x']]\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_ends_the_others(tmp_path: Path, rank: int) -> None:
    began = time.monotonic()
    done = _run(tmp_path, rank)
    assert f"rank {rank} of 2 failed" in done.stderr
    assert time.monotonic() - began < 60
