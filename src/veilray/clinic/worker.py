"""The denoising half of the node, in a process of its own: a file that kills a decoder kills this process alone."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from veilray.clinic.config import ServeConfig
from veilray.clinic.journal import LOG_NAME, log_into
from veilray.clinic.queue import Queue, QueuedImage
from veilray.errors import ImageError, UsageError, VeilrayError
from veilray.images.derived import derived_object, encode_dicom
from veilray.images.dicom import DecodedDicom
from veilray.images.radiograph import FloatImage
from veilray.images.read import open_dicom_bytes
from veilray.inference.denoiser import Denoiser
from veilray.inference.files import denoise_settings
from veilray.inference.record import DenoisedBatch, new_batch
from veilray.obfuscation.estimate import estimate_noise_std
from veilray.parallel.devices import keep_freed_memory

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LOG = logging.getLogger(LOG_NAME)

IDLE_SECONDS = 0.05
BEAT_SECONDS = 1.0
MAX_PIXELS_AT_ONCE = 1 << 22
"""Pixels that are denoised at once, and about as many are read ahead; one image may have more."""
SMALL = 512 * 512
"""Pixels of images that are denoised side by side on a processor, each by one thread: threads that share one image wait
for each other at every layer, and for whatever else runs on their cores."""
HANDS = 4
"""Threads at most that read and write images beside a network that runs elsewhere."""
SWITCH_SECONDS = 0.0005
"""How long a thread may compute in Python while others wait: by default ten times as long, and a network that another
thread drives would stand still that long at every layer."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """An image that is going to be denoised."""

    image: QueuedImage
    decoded: DecodedDicom
    std: float
    """Of its noise, as estimated."""

    @property
    def pixels(self) -> FloatImage:
        """(H, W), float32, [0, 1]."""
        return self.decoded.pixels


def run_worker(config: ServeConfig, pipe: Connection) -> None:
    """Denoise what waits until the parent is gone or says so; the entry point of the process.

    Sends through `pipe` an empty line when the model is loaded, or the reason why it cannot be, then what it logs.
    """
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; a terminal sends Ctrl-C to both
    stopping = Stopping(parent)
    signal.signal(signal.SIGTERM, stopping.ask)
    keep_freed_memory()
    sys.setswitchinterval(SWITCH_SECONDS)
    queue = Queue(config.node.state)
    try:
        worker = Worker(config, queue)
    except VeilrayError as error:
        pipe.send(str(error))
        return
    worker.beat()  # from here on its silence counts, and it must not begin with the time that loading took
    pipe.send("")
    log_into(pipe)
    while not stopping:
        worker.beat()
        if not worker.work(stopping):
            time.sleep(IDLE_SECONDS)
    queue.close()


class Stopping:
    """True once the process should end: it was asked to, or its parent is gone."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._asked = False

    def ask(self, *_: object) -> None:
        """The handler of SIGTERM."""
        self._asked = True

    def __bool__(self) -> bool:
        return self._asked or os.getppid() != self._parent


class Worker:
    """Takes images from the queue and makes derived objects of them, several at once.

    Hands, threads of one core each, read images and look at their noise, and write derived objects; on a processor they
    also denoise small images, each from its file to its derived object. Large ones, and all on other devices, go
    through the network in the calling thread, in batches of one size, while hands read the next and write the last.

    Raises UsageError where the model does not say on which noise it was trained.
    """

    def __init__(self, config: ServeConfig, queue: Queue) -> None:
        import torch

        choice = config.model
        if choice.threads is not None:
            torch.set_num_threads(choice.threads)
        self._denoiser = Denoiser.load(choice.path, device=choice.device, tile=choice.tile)
        if self._denoiser.noise is None or self._denoiser.origin is None:
            raise UsageError(f"{choice.path} does not say on which noise it was trained, so no image could be checked")
        low, high = self._denoiser.noise.std_range
        self._range = low * (1.0 - choice.tolerance), high * (1.0 + choice.tolerance)
        self._clip = self._denoiser.noise.clip
        self._config, self._queue = config, queue
        self._destinations = [destination.name for destination in config.destinations]
        self._weights = self._denoiser.origin.weights_sha256
        self._beaten = -BEAT_SECONDS
        threads, on_processor = torch.get_num_threads(), self._denoiser.device.type == "cpu"
        self._by_hand: float = 0
        """Pixels of the largest image that a hand denoises."""
        if on_processor and threads == 1:
            self._by_hand = math.inf
        elif on_processor and choice.tile is None and not self._denoiser.keeps_statistics:
            self._by_hand = SMALL
        self._most_ahead = self._ahead = 2 * (threads if on_processor else min(threads, HANDS))
        # The number of threads is each thread's own once it was asked for, as above: this one keeps all of them, for
        # large images.
        self._hands = ThreadPoolExecutor(self._ahead // 2, initializer=torch.set_num_threads, initargs=(1,))

    def beat(self) -> None:
        """Say that this worker lives, once a second at most."""
        if time.monotonic() - self._beaten >= BEAT_SECONDS:
            self._queue.beat()
            self._beaten = time.monotonic()

    def work(self, stopping: Stopping | bool = False) -> int:
        """Denoise what waits, until nothing does or it should stop; gives how many images were taken.

        Those that a worker had before come when no others do, one at a time and alone: one may be what killed it.
        """
        taken = 0

        def new() -> Iterator[QueuedImage]:
            nonlocal taken
            while not stopping and (images := self._queue.claim(self._config.model.batch)):
                taken += len(images)
                yield from images

        self._flow(new(), stopping)
        if not taken and not stopping:
            images = self._queue.claim(1, again=True)
            taken = len(images)
            self._flow(images, stopping)
        return taken

    def _flow(self, images: Iterable[QueuedImage], stopping: Stopping | bool) -> None:
        """All stages at once, each on other images than the next; the last one draws images through the others."""
        read = self._in_order(partial(self._begin, stopping=stopping), images)
        for _ in self._in_order(self._finish, self._denoised(read)):
            pass

    def _in_order(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """What a task gives for each item, in order; hands have begun with the next ones before one is waited for.

        Only here does the worker say that it lives, and between batches: where one image hangs, it falls silent.
        """
        begun: deque[Future[Result]] = deque()
        for item in items:
            begun.append(self._hands.submit(task, item))
            while len(begun) > self._ahead:
                yield begun.popleft().result()
                self.beat()
        while begun:
            yield begun.popleft().result()
            self.beat()

    def _begin(self, image: QueuedImage, *, stopping: Stopping | bool) -> _Fit | None:
        """Read an image, and do all the rest where a hand can; None where nothing is left to do."""
        if stopping:
            self._queue.put_back([image])
            return None
        fit = self._examine(image)
        if fit is None or fit.pixels.size > self._by_hand:
            return fit
        std = fit.std if self._clip else None
        self._finish((fit, self._denoiser(fit.pixels, mean=self._config.model.mean, std=std, warn=False)))
        return None

    def _denoised(self, read: Iterable[_Fit | None]) -> Iterator[tuple[_Fit, FloatImage]]:
        """Images that no hand has denoised, with what the network made of them."""
        for batch in self._batches(read):
            self._ahead = max(2, min(self._most_ahead, MAX_PIXELS_AT_ONCE // max(one.pixels.size for one in batch)))
            sizes: dict[tuple[int, ...], list[_Fit]] = {}
            for one in batch:
                sizes.setdefault(one.pixels.shape, []).append(one)
            for alike in sizes.values():
                self.beat()
                pixels = np.stack([one.pixels for one in alike])
                stds = [one.std for one in alike] if self._clip else None
                outputs = self._denoiser.several(pixels, mean=self._config.model.mean, std=stds, warn=False)
                yield from zip(alike, outputs, strict=True)

    def _batches(self, read: Iterable[_Fit | None]) -> Iterator[list[_Fit]]:
        """Batches of what is left to denoise; none waits while a batch's worth of other images passes by."""
        batch: list[_Fit] = []
        passed = 0
        for one in read:
            if one is None:
                passed += 1
                if batch and passed >= self._config.model.batch:
                    yield batch
                    batch = []
                continue
            passed = 0
            pixels = sum(other.pixels.size for other in [*batch, one])
            if len(batch) == self._config.model.batch or (batch and pixels > MAX_PIXELS_AT_ONCE):
                yield batch
                batch = []
            batch.append(one)
        if batch:
            yield batch

    def _examine(self, image: QueuedImage) -> _Fit | None:
        """Read one image and look at its noise; None where it is kept as it came."""
        path: Path = self._queue.received / f"{image.name}.dcm"
        try:
            decoded = open_dicom_bytes(path.read_bytes())
            std = estimate_noise_std(decoded.pixels, clip=True)
        except (ImageError, UsageError) as error:
            self._keep(image, str(error))
            return None
        except OSError as error:
            self._keep(image, f"its file cannot be read: {error.strerror or type(error).__name__}")
            return None
        low, high = self._range
        if not low <= std <= high:
            self._keep(
                image,
                f"its noise has an estimated standard deviation of {std:.3f}; the model's range is "
                f"{low:.3f} to {high:.3f}, tolerance included",
            )
            return None
        return _Fit(image=image, decoded=decoded, std=std)

    def _finish(self, denoised: tuple[_Fit, FloatImage]) -> None:
        """Write the derived object of a denoised image, and say that it is ready."""
        one, pixels = denoised
        settings = denoise_settings(self._denoiser, mean=self._config.model.mean)
        try:
            encoded = self._derive(one, pixels, new_batch(weights_sha256=self._weights, settings=settings))
        except ImageError as error:
            self._keep(one.image, str(error))
            return
        self._queue.ready(one.image, encoded, self._destinations)
        LOG.info("image %s: denoised", one.image.name[:12])

    def _derive(self, one: _Fit, pixels: FloatImage, batch: DenoisedBatch) -> bytes:
        # When the image came, not now: a second try after a crash makes the same object.
        provenance = batch.model_copy(update={"began": one.image.received.replace(microsecond=0)}).provenance()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            original, stored = one.decoded.dataset, one.decoded.stored
            derived = derived_object(original, pixels, provenance=provenance, key=self._queue.key, stored=stored)
            return encode_dicom(derived)

    def _keep(self, image: QueuedImage, reason: str) -> None:
        self._queue.keep(image, reason)
        LOG.warning("image %s: kept as it came, not denoised: %s", image.name[:12], reason)
