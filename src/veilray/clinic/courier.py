"""Delivery: a thread for each destination takes what is due, sends it, and waits longer after each failure."""

from __future__ import annotations

import logging
import random
import threading

from veilray.clinic.config import Destination, ServeConfig
from veilray.clinic.counters import Counters
from veilray.clinic.destinations import DestinationDown, send
from veilray.clinic.journal import LOG_NAME
from veilray.clinic.queue import Queue, QueuedImage
from veilray.errors import VeilrayError

LOG = logging.getLogger(LOG_NAME)

AT_ONCE = 50
IDLE_SECONDS = 0.5
"""Pause after which what has become due goes out together: an association costs as much as an image or two."""
STRIKES = 5
"""How often in succession a destination may fail at one image before that image lets the others go first."""


class Courier:
    """Delivers to one destination. An image that is refused waits and is tried again; a destination that is down waits
    as a whole, and counts against no image; but where it takes others and fails at one time and again, that one is
    refused."""

    def __init__(self, destination: Destination, config: ServeConfig, queue: Queue, counters: Counters) -> None:
        self.name = destination.name
        self.up: bool | None = None
        """Whether the destination answered the last time; None before the first time."""
        self._destination, self._config, self._queue, self._counters = destination, config, queue, counters
        self._failures = 0
        self._strikes: dict[int, int] = {}  # of images: how often the destination failed there and then
        self._stopping = threading.Event()
        self._random = random.Random()  # spreads retries; decides nothing that anyone could want to repeat
        self._thread = threading.Thread(target=self._run, name=f"courier {destination.name}", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def stop(self) -> None:
        """End after the object that is under way."""
        self._stopping.set()
        self._thread.join(timeout=90)

    def deliver(self) -> int:
        """Send what is due, once; gives how many were taken. Raises DestinationDown where there is no way to send."""
        images = self._queue.due(self._destination.name, AT_ONCE)
        if not images:
            return 0
        images.sort(key=lambda image: self._strikes.get(image.id, 0) >= STRIKES)  # stable: else as they came
        paths = (self._queue.derived / f"{image.name}.dcm" for image in images)
        answered = taken = 0
        answers = send(self._destination, paths, ae_title=self._config.node.ae_title)
        try:
            for image, reason in zip(images, answers, strict=False):
                answered += 1
                taken += self._answered(image, reason)
                if self._stopping.is_set():
                    answers.close()
                    break
        except DestinationDown as error:
            image = images[answered]
            self._strikes[image.id] = self._strikes.get(image.id, 0) + 1
            if not taken or self._strikes[image.id] <= STRIKES:
                raise
            self._refused(image, str(error))  # others went through just now: it is this one's doing
        return taken

    def _answered(self, image: QueuedImage, reason: str) -> bool:
        """Note what the destination said of an image; gives whether it took it."""
        self.up = True
        self._strikes.pop(image.id, None)
        if reason:
            self._refused(image, reason)
            return False
        self._queue.delivered(image, self._destination.name)
        self._counters.add("delivered", self._destination.name)
        LOG.info("image %s: delivered to %s", image.name[:12], self._destination.name)
        return True

    def _refused(self, image: QueuedImage, reason: str) -> None:
        retry = self._config.retry
        wait = self._wait(image.attempts)
        dead = self._queue.refused(image, self._destination.name, reason, wait=wait, tries=retry.tries)
        self._counters.add("failed", self._destination.name)
        if dead:
            self._strikes.pop(image.id, None)
        after = "given up, kept as a dead letter" if dead else f"next try in {wait:.0f} s"
        LOG.warning("image %s: %s: %s; %s", image.name[:12], self._destination.name, reason, after)

    def _wait(self, failures: int) -> float:
        retry = self._config.retry
        longest = min(retry.most_seconds, retry.first_seconds * 2.0 ** min(failures, 30))
        return longest * self._random.uniform(0.8, 1.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                count = self.deliver()
                self._failures = 0
                wait = 0.0 if count == AT_ONCE else IDLE_SECONDS
            except DestinationDown as error:
                self.up = False
                wait = self._wait(self._failures)
                self._failures += 1
                self._counters.add("failed", self._destination.name)
                LOG.warning("%s cannot be reached: %s; next try in %.0f s", self._destination.name, error, wait)
            except Exception as error:  # whatever it is, it must not end all deliveries
                wait = self._wait(self._failures)
                self._failures += 1
                reason = str(error) if isinstance(error, VeilrayError) else type(error).__name__
                LOG.error("delivery to %s failed: %s; next try in %.0f s", self._destination.name, reason, wait)
            self._stopping.wait(wait)
