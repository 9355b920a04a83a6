"""The ledger with several processes at once, and under kill -9 at any moment."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from veilray.exchange.keys.secret import Secret
from veilray.exchange.ledger.ledger import Ledger

KEY = Secret(b"l" * 32)
IMAGES = 40

CHILD = f"""
import hashlib, sys, time
from pathlib import Path
from veilray.errors import RefusedError
from veilray.exchange.ledger.ledger import Image, Ledger, Release
from veilray.exchange.keys.secret import Secret

def image(name):
    digest = hashlib.sha256(name.encode()).digest()
    return Image(sop_uid="", digest=digest, likeness=digest, geometry="native", std=0.2)

def release(name):
    return Release(release_id=name, receivers=(), mode="noisy", source="entropy", mean=0.1)

file, name, go = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
with Ledger.open(file, key=Secret(b"l" * 32)) as ledger:
    print("ready", flush=True)
    while not go.exists():
        time.sleep(0.001)
    for number in range(int(sys.argv[4])):
        subject = name.partition("-")[0]  # processes same-0 and same-1 release the same images
        images = [image(f"{{subject}}/{{number}}/{{part}}") for part in range({IMAGES})]
        try:
            ledger.reserve(release(f"{{name}}/{{number}}"), images)
        except RefusedError:
            print("refused", number, flush=True)
            continue
        print("reserved", number, flush=True)
        ledger.commit(f"{{name}}/{{number}}")
        print("committed", number, flush=True)
"""


def _start(file: Path, name: str, go: Path, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(file), name, str(go), str(rounds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _told(output: str, word: str) -> set[int]:
    return {int(line.split()[1]) for line in output.splitlines() if line.startswith(word)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Ledger.create(tmp_path / "ledger.db", key=KEY)
    return tmp_path / "ledger.db"


def test_of_two_processes_that_would_release_an_image_once_each_only_one_gets_through(file: Path) -> None:
    go, rounds = file.parent / "go", 12
    processes = [_start(file, f"same-{number}", go, rounds) for number in range(2)]
    go.touch()
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    committed = [_told(output, "committed") for output in outputs]
    refused = [_told(output, "refused") for output in outputs]
    assert committed[0] | committed[1] == set(range(rounds))
    assert not committed[0] & committed[1]
    assert refused == [committed[1], committed[0]]
    with Ledger.open(file, key=KEY) as ledger:
        assert all(exposure.std == pytest.approx(0.2) for exposure in ledger.exposures())


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing_that_was_told_and_leaves_nothing_half(file: Path) -> None:
    go, moments = file.parent / "go", random.Random(11)
    go.touch()
    for attempt in range(6):
        process = _start(file, f"run{attempt}", go, 10_000)
        assert process.stdout is not None
        # Every second one has begun with a release at least, however slow the disk is.
        output = process.stdout.readline() if attempt % 2 else ""
        time.sleep(moments.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        with process:
            output += process.stdout.read()
        assert process.returncode == -signal.SIGKILL
        with Ledger.open(file, key=KEY) as ledger:
            own = [line for line in ledger.releases() if line.release.release_id.startswith(f"run{attempt}/")]
            status = {int(line.release.release_id.partition("/")[2]): line.status for line in own}
            assert _told(output, "reserved") <= set(status)
            assert _told(output, "committed") <= {number for number, said in status.items() if said == "committed"}
            assert sum(said == "reserved" for said in status.values()) <= 1
        connection = sqlite3.connect(file)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert {count for (count,) in connection.execute("SELECT COUNT(*) FROM given GROUP BY release")} <= {IMAGES}
        connection.close()
    with Ledger.open(file, key=KEY) as ledger:
        assert ledger.releases()
        assert len(ledger.exposures()) == IMAGES * len(ledger.releases())  # a reservation left behind counts
