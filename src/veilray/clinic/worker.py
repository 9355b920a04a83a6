"""The denoising half of the node, in a process of its own: a file that kills a decoder kills this process alone."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from veilray.clinic.config import ServeConfig
from veilray.clinic.journal import LOG_NAME, log_into
from veilray.clinic.queue import Queue, QueuedImage
from veilray.errors import ImageError, UsageError, VeilrayError
from veilray.images.derived import derived_object, encode_dicom
from veilray.images.dicom import parse_dicom
from veilray.images.radiograph import FloatImage
from veilray.images.read import read_radiograph_bytes
from veilray.inference.denoiser import Denoiser
from veilray.inference.files import denoise_settings
from veilray.inference.record import DenoisedBatch, new_batch
from veilray.obfuscation.estimate import estimate_noise_std

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LOG = logging.getLogger(LOG_NAME)

IDLE_SECONDS = 0.05
BEAT_SECONDS = 1.0
MAX_PIXELS_AT_ONCE = 1 << 22
"""Pixels that are denoised at once; one image may have more. The worker says that it lives in between."""
SMALL = 512 * 512
"""Pixels of images that are denoised side by side on a processor, each by one thread: threads that share one image wait
for each other at every layer, and for whatever else runs on their cores."""


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """An image that is going to be denoised."""

    image: QueuedImage
    data: bytes
    pixels: FloatImage


def run_worker(config: ServeConfig, pipe: Connection) -> None:
    """Denoise what waits until the parent is gone or says so; the entry point of the process.

    Sends through `pipe` an empty line when the model is loaded, or the reason why it cannot be, then what it logs.
    """
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; a terminal sends Ctrl-C to both
    stopping = Stopping(parent)
    signal.signal(signal.SIGTERM, stopping.ask)
    queue = Queue(config.node.state)
    try:
        worker = Worker(config, queue)
    except VeilrayError as error:
        pipe.send(str(error))
        return
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
    """Takes images from the queue, in batches of one size, and makes derived objects of them.

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
        self._config, self._queue = config, queue
        self._destinations = [destination.name for destination in config.destinations]
        self._weights = self._denoiser.origin.weights_sha256
        self._beaten = -BEAT_SECONDS
        threads = torch.get_num_threads()
        self._threads: ThreadPoolExecutor | None = None
        if threads > 1 and choice.tile is None and self._denoiser.device.type == "cpu":
            # The number of threads is each thread's own: this one keeps all of them, for large images.
            self._threads = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def beat(self) -> None:
        """Say that this worker lives, once a second at most."""
        if time.monotonic() - self._beaten >= BEAT_SECONDS:
            self._queue.beat()
            self._beaten = time.monotonic()

    def work(self, stopping: Stopping | bool = False) -> int:
        """Denoise one batch of what waits; gives how many images were taken."""
        images = self._queue.claim(self._config.model.batch)
        fit: list[_Fit] = []
        for place, image in enumerate(images):
            if stopping:
                self._queue.put_back(images[place:])
                break
            self.beat()
            if (one := self._examine(image)) is None:
                continue
            if fit and sum(other.pixels.size for other in [*fit, one]) > MAX_PIXELS_AT_ONCE:
                self._denoise_all(fit)
                fit = []
            fit.append(one)
        self._denoise_all(fit)
        return len(images)

    def _denoise_all(self, fit: Sequence[_Fit]) -> None:
        sizes: dict[tuple[int, ...], list[_Fit]] = {}
        for one in fit:
            sizes.setdefault(one.pixels.shape, []).append(one)
        for alike in sizes.values():
            self.beat()
            self._denoise(alike)

    def _examine(self, image: QueuedImage) -> _Fit | None:
        """Read one image and look at its noise; None where it is kept as it came."""
        path: Path = self._queue.received / f"{image.name}.dcm"
        try:
            data = path.read_bytes()
            pixels = read_radiograph_bytes(data, source=image.name).pixels
            std = estimate_noise_std(pixels, clip=True)
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
        return _Fit(image=image, data=data, pixels=pixels)

    def _denoise(self, alike: Sequence[_Fit]) -> None:
        mean = self._config.model.mean
        for one, pixels in zip(alike, self._outputs([one.pixels for one in alike]), strict=True):
            self.beat()
            batch = new_batch(weights_sha256=self._weights, settings=denoise_settings(self._denoiser, mean=mean))
            try:
                encoded = self._derive(one, pixels, batch)
            except ImageError as error:
                self._keep(one.image, str(error))
                continue
            self._queue.ready(one.image, encoded, self._destinations)
            LOG.info("image %s: denoised", one.image.name[:12])

    def _outputs(self, images: Sequence[FloatImage]) -> Iterable[FloatImage]:
        """The images of one size, denoised; those of small ones come while the next are being worked on."""
        mean = self._config.model.mean
        if self._threads is None or images[0].size > SMALL:
            return self._denoiser.several(np.stack(images), mean=mean)
        return self._threads.map(lambda pixels: self._denoiser(pixels, mean=mean), images)

    def _derive(self, one: _Fit, pixels: FloatImage, batch: DenoisedBatch) -> bytes:
        # When the image came, not now: a second try after a crash makes the same object.
        provenance = batch.model_copy(update={"began": one.image.received.replace(microsecond=0)}).provenance()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            derived = derived_object(parse_dicom(one.data), pixels, provenance=provenance, key=self._queue.key)
            return encode_dicom(derived)

    def _keep(self, image: QueuedImage, reason: str) -> None:
        self._queue.keep(image, reason)
        LOG.warning("image %s: kept as it came, not denoised: %s", image.name[:12], reason)
