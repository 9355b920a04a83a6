"""The worker: what it denoises, what it keeps as it came, and what its objects say."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import Dataset, dcmread
from tests.clinic.nodes import image, noisy_values, write_config, write_model
from tests.images.clinical_files import cr
from tests.images.dicom_files import save

from veilray.clinic import worker as worker_module
from veilray.clinic.config import load_serve_config
from veilray.clinic.queue import Queue
from veilray.clinic.worker import Worker
from veilray.errors import UsageError
from veilray.images.derived import is_derived
from veilray.images.read import read_radiograph_bytes
from veilray.inference.denoiser import Denoiser


def _worker(folder: Path, model: str = "threads = 1") -> tuple[Worker, Queue]:
    path = write_config(folder, port=1)
    path.write_text(path.read_text().replace("threads = 1", model))
    config = load_serve_config(path)
    queue = Queue(config.node.state)
    return Worker(config, queue), queue


def _derived(queue: Queue) -> list[Dataset]:
    return [dcmread(queue.derived / f"{each.name}.dcm") for each in queue.due("archive", 100)]


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("count", [2, 12])
@pytest.mark.parametrize(("threads", "more"), [(1, ""), (2, ""), (2, "tile = 512")])
def test_images_of_two_sizes_become_derived_objects(folder: Path, threads: int, more: str, count: int) -> None:
    worker, queue = _worker(folder, f"threads = {threads}\n{more}")
    originals = {str(each.SOPInstanceUID): each for each in map(image, range(count))}
    large = cr(noisy_values(2, size=96), bits=12, SOPInstanceUID="1.2.3.4")
    originals["1.2.3.4"] = large
    for uid, each in originals.items():
        queue.accept(uid, save(each))
    assert worker.work() == count + 1
    denoiser = Denoiser.load(folder / "model.safetensors", device="cpu")
    derived = _derived(queue)
    assert len(derived) == count + 1
    for each in derived:
        source = originals[str(each.SourceImageSequence[0].ReferencedSOPInstanceUID)]
        assert is_derived(each)
        assert each.PatientID == source.PatientID
        expected = denoiser(read_radiograph_bytes(save(source), source="a").pixels, mean=0.0, warn=False)
        assert np.abs(each.pixel_array - 4095 * expected.astype(np.float64)).max() <= 1.5
    assert worker.work() == 0
    assert torch.get_num_threads() == threads  # large images still get all of them


@pytest.mark.usefixtures("_threads_as_before")
def test_where_tiles_share_statistics_one_thread_denoises(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(*_: object, **__: object) -> None:
        raise AssertionError("by a hand, which may fall into another image's tiles")

    monkeypatch.setattr(Denoiser, "keeps_statistics", True)
    monkeypatch.setattr(Denoiser, "__call__", alone)
    worker, queue = _worker(folder, "threads = 2")
    queue.accept("1", save(image(0)))
    assert worker.work() == 1
    assert len(_derived(queue)) == 1


def test_a_large_image_does_not_wait_for_a_batch_of_its_like(folder: Path) -> None:
    worker, _ = _worker(folder)
    large: Any = SimpleNamespace(pixels=np.zeros((9, 9), np.float32))
    drawn = 0

    def read() -> Iterator[Any]:
        nonlocal drawn
        yield large
        while True:  # images that a hand has denoised
            drawn += 1
            yield None

    assert next(worker._batches(read())) == [large]
    assert drawn == worker._config.model.batch


def test_noise_outside_the_trained_range_is_not_smoothed_and_the_reason_is_kept(folder: Path) -> None:
    worker, queue = _worker(folder)
    for index, std in enumerate((0.002, 0.1, 0.4)):
        queue.accept(str(index), save(image(index, std=std)))
    worker.work()
    assert queue.counts()["ready"] == 1
    reasons = [letter.reason for letter in queue.given_up.letters()]
    assert len(reasons) == 2
    assert all("estimated standard deviation" in reason for reason in reasons)
    assert len(list(queue.received.iterdir())) == 3


@pytest.mark.slow
def test_what_cannot_be_read_is_kept_with_the_reason(folder: Path) -> None:
    worker, queue = _worker(folder)
    queue.accept("1", save(image(0))[:-500])
    queue.accept("2", save(cr(np.zeros((8, 8), np.uint16), bits=12)))
    queue.accept("3", save(cr(noisy_values(1), bits=12, SeriesInstanceUID=None)))
    queue.accept("4", save(image(2)))
    (queue.received / f"{queue.name_of('4')}.dcm").unlink()
    assert worker.work() == 4
    reasons = " ".join(letter.reason for letter in queue.given_up.letters())
    for part in ("cut short", "18 x 18", "SeriesInstanceUID", "cannot be read"):
        assert part in reasons
    assert queue.counts()["kept"] == 4


def test_a_retry_after_a_crash_makes_the_same_object(folder: Path) -> None:
    worker, queue = _worker(folder)
    queue.accept("1", save(image(0)))
    worker.work()
    (path,) = queue.derived.iterdir()
    first = path.read_bytes()
    path.unlink()
    with queue._database.writing() as database:  # as if the machine had stopped before the row was written
        database.execute("DELETE FROM deliveries")
        database.execute("UPDATE images SET state = 'denoising'")
    queue.recover(["archive"])
    worker.work()
    assert path.read_bytes() == first
    assert dcmread(io.BytesIO(first)).SOPInstanceUID


@pytest.mark.slow
def test_work_that_is_stopped_is_given_back(folder: Path) -> None:
    worker, queue = _worker(folder)
    for index in range(6):
        queue.accept(str(index), save(image(index)))
    assert worker.work(stopping=True) == 0

    class Soon:
        """Says that work should stop when some of it is done."""

        def __bool__(self) -> bool:
            return queue.counts()["ready"] >= 2

    worker.work(stopping=Soon())  # type: ignore[arg-type]
    counts = queue.counts()
    assert counts["ready"] >= 2
    assert counts["waiting"] == 6 - counts["ready"] > 0
    assert [each.attempts for each in queue.claim(6)] == [0] * counts["waiting"]


@pytest.mark.usefixtures("_threads_as_before")
def test_images_that_a_worker_had_before_come_last_and_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, queue = _worker(folder, "threads = 2")
    for index in range(2):
        queue.accept(str(index), save(image(index)))
    queue.claim(2)
    queue.give_back()
    under_way: list[int] = []
    ready = Queue.ready

    def noted(self: Queue, *what: Any) -> None:
        under_way.append(self.counts()["denoising"])
        ready(self, *what)

    monkeypatch.setattr(Queue, "ready", noted)
    queue.accept("new", save(image(2)))
    assert [worker.work() for _ in range(4)] == [1, 1, 1, 0]
    assert under_way == [1, 1, 1]
    assert [each.name for each in queue.due("archive", 3)] == [queue.name_of(name) for name in ("0", "1", "new")]


@pytest.mark.parametrize("name", ["defualt", "shipped:defualt"])
def test_the_name_of_no_model_that_ships_is_refused_with_those_that_do(folder: Path, name: str) -> None:
    path = write_config(folder, port=1)
    path.write_text(path.read_text().replace("model.safetensors", name))
    config = load_serve_config(path)
    with pytest.raises(UsageError, match="what ships is default"):
        Worker(config, Queue(config.node.state))


def test_a_model_that_ships_denoises(folder: Path) -> None:
    path = write_config(folder, port=1)
    path.write_text(path.read_text().replace("model.safetensors", "default"))
    config = load_serve_config(path)
    queue = Queue(config.node.state)
    queue.accept("1", save(image(0)))
    assert Worker(config, queue).work() == 1
    assert queue.counts()["ready"] == 1


def test_a_model_that_does_not_say_its_noise_is_refused(tmp_path: Path) -> None:
    from veilray.models.unet import UNet
    from veilray.models.weights import save_weights

    save_weights(tmp_path / "model.safetensors", UNet(width=4, depth=2))
    with pytest.raises(UsageError, match="on which noise"):
        _worker(tmp_path)
    write_model(tmp_path / "model.safetensors", std=0.1)
    _worker(tmp_path)


def test_a_worker_beats_before_it_says_that_it_has_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on its silence counts, which would else begin with the time that loading took."""
    done: list[str] = []

    class Loaded:
        def __init__(self, *_: object) -> None: ...

        def beat(self) -> None:
            done.append("beat")

        def work(self, *_: object) -> int:
            raise KeyboardInterrupt

    class Pipe:
        def send(self, what: str) -> None:
            done.append(f"said {what!r}")

    monkeypatch.setattr(worker_module, "Worker", Loaded)
    for name in ("signal.signal", "keep_freed_memory", "sys.setswitchinterval", "log_into"):
        monkeypatch.setattr(f"{worker_module.__name__}.{name}", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        worker_module.run_worker(load_serve_config(write_config(folder, port=1)), Pipe())  # type: ignore[arg-type]
    assert done[:2] == ["beat", "said ''"]
