"""The node as a process: from images in to derived objects out, through kill -9 at any moment."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.clinic.nodes import NodeProcess, archive, eventually, image, send_all, write_config
from tests.command_line import veilray

from veilray.clinic.queue import Queue


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.slow
def test_images_in_derived_objects_out_and_all_of_it_told_without_names(
    folder: Path, start_node: Callable[[Path], NodeProcess]
) -> None:
    with archive() as (found, port):
        config = write_config(folder, port=port, extra='[log]\nfile = "logs/node.log"')
        node = start_node(config)
        images = [image(index) for index in range(5)] + [image(9, std=0.5)]
        assert send_all(node.port, images) == [0] * 6
        eventually(lambda: len(found.taken) == 5)
        assert sorted(found.sources) == sorted(str(each.SOPInstanceUID) for each in images[:5])
        ends = ('veilray_delivered_total{destination="archive"} 5', 'veilray_images{state="kept"} 1')
        eventually(lambda: all(end in _get(node.health, "/metrics")[1] for end in ends))
        status, page = _get(node.health, "/metrics")
        assert status == 200
        for line in ("veilray_received_total 6", "veilray_healthy 1"):
            assert line in page.splitlines()
        assert 'veilray_images{state="done"} 5' in page
        assert _get(node.health, "/health") == (200, "ok\n")
        assert _get(node.health, "/etc/passwd")[0] == 404
        second = veilray("serve", config)
        assert (second.status, "another node" in second.err) == (2, True)
        assert node.stop() == 0
    log = (folder / "logs" / "node.log").read_text()
    assert log.count("denoised") >= 5
    assert "estimated standard deviation" in log
    for text in (log, "\n".join(node.lines)):
        for secret in ("Doe", "P7", "A-17", "WARD", str(images[0].SOPInstanceUID), str(images[0].StudyInstanceUID)):
            assert secret not in text
    shown = veilray("serve", config, "--status")
    assert (shown.status, "done: 5" in shown.out, "estimated standard deviation" in shown.out) == (0, True, True)
    assert not list((folder / "state" / "derived").iterdir())
    assert len(list((folder / "state" / "received").iterdir())) == 1


@pytest.mark.slow
# pynetdicom leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_nothing_acknowledged_is_lost_by_kills_at_random_moments(
    folder: Path, start_node: Callable[[Path], NodeProcess]
) -> None:
    chance = random.Random(5)
    images = [image(index) for index in range(24)]
    acknowledged: set[str] = set()

    def push(node_port: int) -> None:
        waiting = [each for each in images if str(each.SOPInstanceUID) not in acknowledged]
        for each in waiting:
            if send_all(node_port, [each]) != [0]:
                return
            acknowledged.add(str(each.SOPInstanceUID))

    with archive() as (found, port):
        config = write_config(folder, port=port)
        for _ in range(3):
            node = start_node(config)
            sender = threading.Thread(target=push, args=(node.port,))
            sender.start()
            time.sleep(chance.uniform(0.05, 1.5))
            node.kill()
            sender.join()
        there = set(found.sources) | _in_queue(folder, images)
        assert acknowledged <= there
        node = start_node(config)
        push(node.port)
        assert len(acknowledged) == len(images)
        eventually(lambda: 'veilray_images{state="done"} 24' in _get(node.health, "/metrics")[1])
        assert node.stop() == 0
    assert set(found.sources) == acknowledged
    # An archive may be sent an object again after a kill: it is the same one, by its UID and to the byte.
    once: dict[str, bytes] = {}
    for each in found.taken:
        assert once.setdefault(str(each.SOPInstanceUID), each.PixelData) == each.PixelData
    assert len(once) == len(images)


def _in_queue(folder: Path, images: list) -> set[str]:
    """Which images a stopped node has in its queue, by what its rows and its files say together."""
    queue = Queue(folder / "state")
    files = {path.stem for path in queue.received.glob("*.dcm")}
    rows = {name for (name,) in queue._database.rows("SELECT name FROM images WHERE state <> 'done'")}
    queue.close()
    uids = {queue.name_of(str(each.SOPInstanceUID)): str(each.SOPInstanceUID) for each in images}
    return {uids[name] for name in files & rows}


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again(folder: Path, start_node: Callable[[Path], NodeProcess]) -> None:
    with archive() as (found, port):
        node = start_node(write_config(folder, port=port))
        (worker,) = _children(node.process.pid, "spawn_main")
        os.kill(worker, signal.SIGKILL)
        node.wait_for("worker ended")
        assert send_all(node.port, [image(0)]) == [0]
        eventually(lambda: len(found.taken) == 1)
        assert "veilray_worker_restarts_total 1" in _get(node.health, "/metrics")[1]
        workers = _children(node.process.pid, "spawn_main")
        node.kill()
        for pid in workers:
            eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # it does not outlive its parent


@pytest.mark.slow
@pytest.mark.parametrize("writing", [False, True], ids=["anywhere", "while it writes into the queue"])
def test_a_worker_that_hangs_is_ended_and_what_it_had_is_done(
    writing: bool, folder: Path, start_node: Callable[[Path], NodeProcess]
) -> None:
    with archive() as (found, port):
        config = write_config(folder, port=port)
        config.write_text(config.read_text().replace("batch = 4", "batch = 4\nsilence_seconds = 8"))
        node = start_node(config)
        (worker,) = _children(node.process.pid, "spawn_main")
        os.kill(worker, signal.SIGSTOP)  # as one that waits for a driver that never answers
        while writing and not _written(folder):
            os.kill(worker, signal.SIGCONT)
            time.sleep(0.001)
            os.kill(worker, signal.SIGSTOP)
        assert send_all(node.port, [image(0)], seconds=60.0) == [0]
        node.wait_for("worker has been silent")
        node.wait_for("worker ended")
        eventually(lambda: len(found.taken) == 1)
        assert worker not in _children(node.process.pid, "spawn_main")


def _written(folder: Path) -> bool:
    """Whether somebody writes into a node's queue just now, and so keeps all others from it."""
    with contextlib.closing(sqlite3.connect(folder / "state" / "queue.sqlite", timeout=0.0)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


def _children(parent: int, command: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(status[1]) == parent and command in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.slow
def test_a_model_that_is_none_ends_the_start_with_one_line(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")
    result = veilray("serve", write_config(folder, port=1))
    assert (result.status, len(result.lines)) == (2, 1)
    assert "model.safetensors" in result.err
