"""The queue: nothing acknowledged is lost, nothing is done twice, and no file or row names a patient."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from veilray.clinic.queue import NODE_TRIES, WORKER_TRIES, Queue, QueuedImage
from veilray.errors import DataError

UID = "1.2.3.4.5"


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "state")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _take(queue: Queue, count: int = 1) -> list[QueuedImage]:
    for index in range(count):
        assert queue.accept(f"{UID}.{index}", b"image") == "new"
    return queue.claim(count)


def test_an_image_goes_through_to_every_destination_and_leaves_no_file(queue: Queue) -> None:
    (image,) = _take(queue)
    queue.ready(image, b"derived", ["a", "b"])
    for destination in ("a", "b"):
        (due,) = queue.due(destination, 10)
        assert queue.counts()["ready"] == 1
        assert (queue.derived / f"{due.name}.dcm").read_bytes() == b"derived"
        queue.delivered(due, destination)
        assert queue.due(destination, 10) == []
    assert queue.counts()["done"] == 1
    assert _names(queue.received) == _names(queue.derived) == set()
    assert queue.backlog() == (0, 0.0)


def test_the_same_image_again_is_known_before_and_after_it_was_delivered(queue: Queue) -> None:
    (image,) = _take(queue)
    assert queue.accept(f"{UID}.0", b"image") == "known"
    assert queue.accept(f"{UID}.0", b"altered") == "other"
    queue.ready(image, b"derived", ["a"])
    queue.delivered(image, "a")
    assert queue.accept(f"{UID}.0", b"image") == "known"
    assert _names(queue.received) == set()
    queue.forget(days=1.0)
    assert queue.accept(f"{UID}.0", b"image") == "known"
    queue.forget(days=0.0)
    assert queue.accept(f"{UID}.0", b"image") == "new"


def test_a_delivered_image_can_be_forgotten_and_comes_again(queue: Queue) -> None:
    images = _take(queue, 3)
    for image in images[:2]:
        queue.ready(image, b"derived", ["a"])
        queue.delivered(image, "a")
    assert queue.forget_delivered("0" * 12) == 0
    assert queue.forget_delivered(images[0].name[:12]) == 1
    assert [queue.accept(f"{UID}.{index}", b"image") for index in range(3)] == ["new", "known", "known"]
    assert queue.forget_delivered() == 1  # what is on its way stays
    assert queue.counts()["denoising"] == 1


def test_what_it_holds_is_counted(queue: Queue, tmp_path: Path) -> None:
    (image,) = _take(queue)
    queue.ready(image, b"derived object", ["a"])
    (tmp_path / "state/orphans").mkdir()
    (tmp_path / "state/orphans/x.dcm").write_bytes(bytes(100))
    assert queue.held() == {"received": 5, "derived": 14, "orphans": 100}
    queue.delivered(image, "a")
    assert queue.held() == {"received": 0, "derived": 0, "orphans": 100}


def test_many_threads_that_bring_the_same_image_queue_it_once(queue: Queue) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(queue.accept(UID, b"image"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["known"] * 11 + ["new"]
    assert len(queue.claim(10)) == 1
    assert len(_names(queue.received)) == 1


def test_neither_names_nor_rows_hold_the_uid_and_others_cannot_read(queue: Queue, tmp_path: Path) -> None:
    _take(queue)
    queue.close()
    state = tmp_path / "state"
    assert UID not in "".join(str(path) for path in state.rglob("*"))
    assert UID.encode() not in b"".join(path.read_bytes() for path in state.glob("queue.sqlite*"))
    assert state.stat().st_mode & 0o077 == 0
    assert (state / "uid.key").stat().st_mode & 0o077 == 0
    assert Queue(state).name_of(UID) != Queue(tmp_path / "other").name_of(UID)


def test_after_a_stop_work_is_given_back_and_strays_are_set_aside(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "state")
    first, second = _take(queue, 2)
    queue.ready(second, b"derived", ["a"])
    (queue.received / f"{'0' * 32}.dcm").write_bytes(b"never acknowledged")
    (queue.derived / ".half.part").write_bytes(b"half")
    again = Queue(tmp_path / "state")  # as after a kill: nothing was closed
    assert again.recover(["a"]) == 1
    assert _names(tmp_path / "state" / "orphans") == {f"received-{'0' * 32}.dcm"}
    assert [image.id for image in again.claim(10, again=True)] == [first.id]
    assert _names(again.received) == {f"{image.name}.dcm" for image in (first, second)}
    assert _names(again.derived) == {f"{second.name}.dcm"}
    assert again.due("a", 10)[0].id == second.id


@pytest.mark.parametrize("emptied", [False, True])
def test_a_queue_that_lost_its_database_keeps_the_images(tmp_path: Path, emptied: bool) -> None:
    state = tmp_path / "state"
    queue = Queue(state)
    _take(queue, 2)
    queue.close()
    before = _names(queue.received)
    for path in state.glob("queue.sqlite*"):
        path.unlink()
    if emptied:
        (state / "queue.sqlite").touch()
    for _ in range(2):  # the refusal makes no database that would be believed the next time
        with pytest.raises(DataError, match=r"queue\.sqlite is missing while .* holds images: restore it, or move"):
            Queue(state)
    assert _names(queue.received) == before
    assert len(before) == 2


def test_a_file_that_is_done_with_is_no_orphan(queue: Queue, tmp_path: Path) -> None:
    (image,) = _take(queue)
    queue.ready(image, b"derived", ["a"])
    queue.delivered(image, "a")
    (queue.received / f"{image.name}.dcm").write_bytes(b"image")  # as a kill before the clean-up leaves it
    assert queue.recover(["a"]) == 0
    assert _names(queue.received) == set()
    assert not (tmp_path / "state" / "orphans").exists()


def test_a_kill_between_the_last_delivery_and_the_clean_up_is_made_up_for(queue: Queue, tmp_path: Path) -> None:
    (image,) = _take(queue)
    queue.ready(image, b"derived", ["a"])
    with sqlite3.connect(tmp_path / "state" / "queue.sqlite") as database:
        database.execute("UPDATE deliveries SET state = 'done'")
    database.close()
    queue.recover(["a"])
    assert queue.counts()["done"] == 1
    assert _names(queue.received) == _names(queue.derived) == set()


def test_an_image_that_kills_workers_is_tried_alone_and_then_given_up(queue: Queue) -> None:
    _take(queue, 3)
    queue.give_back()
    for _ in range(WORKER_TRIES - 1):
        for _ in range(3):
            assert not queue.claim(3)
            assert len(queue.claim(3, again=True)) == 1
        queue.give_back()
    assert queue.counts()["dead"] == 3
    assert len(_names(queue.received)) == 3
    assert {letter.state for letter in queue.given_up.letters()} == {"dead"}
    assert queue.given_up.retry_dead() == 3
    assert len(queue.claim(3)) == 3


def test_a_node_that_is_killed_blames_images_late(queue: Queue) -> None:
    _take(queue)
    for _ in range(NODE_TRIES - 1):
        queue.recover(["a"])
        assert len(queue.claim(1, again=True)) == 1
    queue.recover(["a"])
    assert queue.counts()["dead"] == 1


def test_work_that_was_put_back_was_no_attempt(queue: Queue) -> None:
    images = _take(queue, 2)
    queue.put_back(images)
    assert [image.attempts for image in queue.claim(2)] == [0, 0]


def test_refusals_wait_and_end_as_dead_letters_that_can_be_retried(queue: Queue) -> None:
    (image,) = _take(queue)
    queue.ready(image, b"derived", ["a"])
    assert not queue.refused(image, "a", "no", wait=100.0, tries=2)
    assert queue.due("a", 10) == []
    again = QueuedImage(id=image.id, name=image.name, attempts=1, received=image.received)
    assert queue.refused(again, "a", "no", wait=0.0, tries=2)
    (letter,) = queue.given_up.letters()
    assert (letter.state, letter.destination, letter.reason) == ("dead letter", "a", "no")
    assert _names(queue.derived) == {f"{image.name}.dcm"}
    assert queue.given_up.retry_dead() == 1
    assert len(queue.due("a", 10)) == 1


def test_deliveries_to_nobody_become_dead_letters(queue: Queue) -> None:
    (image,) = _take(queue)
    queue.ready(image, b"derived", ["a", "gone"])
    queue.recover(["a"])
    assert [(letter.destination, letter.state) for letter in queue.given_up.letters()] == [("gone", "dead letter")]


def test_kept_images_stay_with_their_reason(queue: Queue) -> None:
    (image,) = _take(queue)
    queue.keep(image, "too noisy")
    queue.recover(["a"])
    (letter,) = queue.given_up.letters()
    assert (letter.state, letter.reason) == ("kept", "too noisy")
    assert _names(queue.received) == {f"{image.name}.dcm"}
    assert queue.given_up.retry_dead() == 0


def test_an_image_that_was_kept_is_new_again_once_its_file_is_deleted(queue: Queue) -> None:
    (image,) = _take(queue)
    queue.keep(image, "too noisy")
    assert queue.accept(f"{UID}.0", b"image") == "known"
    assert queue.accept(f"{UID}.0", b"altered") == "other"
    (queue.received / f"{image.name}.dcm").unlink()
    assert queue.accept(f"{UID}.0", b"altered") == "new"
    (again,) = queue.claim(5)
    assert (again.name, again.attempts) == (image.name, 0)
    assert _names(queue.received) == {f"{image.name}.dcm"}


def test_kept_images_can_be_tried_with_another_model_or_discarded(queue: Queue) -> None:
    first, second, third = _take(queue, 3)
    for image in (first, second):
        queue.keep(image, "too noisy")
    (queue.received / f"{second.name}.dcm").unlink()
    assert queue.given_up.retry_kept() == 1
    assert [image.name for image in queue.claim(5)] == [first.name]
    assert list(queue.given_up.letters()) == []  # the one without a file is forgotten
    queue.keep(first, "too noisy again")
    assert queue.given_up.discard_kept() == 1
    assert _names(queue.received) == {f"{third.name}.dcm"}
    assert queue.accept(f"{UID}.0", b"image") == "new"


def test_dead_letters_are_no_backlog_and_can_be_dropped(queue: Queue) -> None:
    images = _take(queue, 3)
    for image, destinations in zip(images, (["a"], ["a", "gone"], ["gone"]), strict=True):
        queue.ready(image, b"derived", destinations)
    queue.recover(["a"])
    assert queue.backlog()[0] == 2
    for image in queue.due("a", 10):
        queue.delivered(image, "a")
    assert queue.backlog() == (0, 0.0)
    assert queue.counts()["ready"] == 2
    assert queue.given_up.discard_dead("a") == 0
    assert queue.given_up.discard_dead("gone") == 2
    assert queue.counts()["done"] == 3
    assert _names(queue.received) == _names(queue.derived) == set()


def test_images_that_killed_workers_can_be_discarded(queue: Queue) -> None:
    _take(queue)
    queue.give_back(tries=1)
    assert queue.counts()["dead"] == 1
    assert queue.given_up.discard_dead("a") == 0
    assert queue.given_up.discard_dead() == 1
    assert queue.accept(f"{UID}.0", b"other bytes") == "new"


def test_damage_is_said(tmp_path: Path) -> None:
    state = tmp_path / "state"
    Queue(state).close()
    (state / "queue.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match=r"queue\.sqlite is damaged"):
        Queue(state)
    (state / "queue.sqlite").unlink()
    (state / "uid.key").write_bytes(b"short")
    with pytest.raises(DataError, match=r"uid\.key"):
        Queue(state)


def test_a_writer_that_waits_for_another_process_keeps_no_reader_waiting(queue: Queue, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "queue.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=queue.accept, args=(UID, b"image"))
        writer.start()
        time.sleep(0.5)  # so that it waits by now
        assert queue.beaten() is None
        assert queue.counts()["waiting"] == 0
        assert writer.is_alive()
        other.execute("ROLLBACK")
        writer.join()
    assert queue.counts()["waiting"] == 1
