"""What the release ledger takes when it is large: examining releases of new and of known images, and listing it.

    python benchmarks/ledger.py [--acquisitions 100000] [--images 100] [--save]

An image whose pixels the ledger does not know is compared with the likeness of every acquisition, one after the other.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import save, table
from veilray.exchange.keys.secret import Secret
from veilray.exchange.ledger.book import Acquisitions
from veilray.exchange.ledger.exposure import Given
from veilray.exchange.ledger.ledger import LEDGER_FILE, Image, Ledger, Release

KEY = Secret(b"l" * 32)


def _image(number: int) -> Image:
    return Image(
        sop_uid=f"1.2.{number}",
        digest=number.to_bytes(32, "big"),
        likeness=os.urandom(32),  # as far from the others as different patients' images are, or farther
        geometry="native",
        std=0.2,
    )


def _fill(path: Path, count: int) -> None:
    """As one release of that many images, without having compared them all with each other."""
    with Ledger.open(path, key=KEY) as ledger:
        first = [_image(0)]
        ledger.reserve(_release("first"), first)
        ledger.commit("first")
        with ledger._transaction():
            book = Acquisitions(ledger._connection, KEY)
            for number in range(1, count):
                image = _image(number)
                given = Given(
                    release_id="first",
                    mode="noisy",
                    field=str(number),
                    geometry="native",
                    std=image.std,
                    clip=True,
                    mean=0.1,
                )
                book.add(set(), image, given)


def _release(name: str) -> Release:
    return Release(release_id=name, receivers=("ab" * 32,), mode="noisy", source="secret", noise_id="n", mean=0.1)


def _seconds(run: Callable[[], object], rounds: int = 3) -> float:
    """The best of some rounds, in processor time."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acquisitions", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--save", action="store_true", help="write results/ledger.json")
    options = parser.parse_args()
    count, images = options.acquisitions, options.images
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LEDGER_FILE
        Ledger.create(path, key=KEY)
        _fill(path, count)
        new = [_image(count + number) for number in range(images)]
        known = [_image(number) for number in range(images)]
        with Ledger.open(path, key=KEY) as ledger:
            seconds = {
                "examine a release of 1 new image": _seconds(lambda: ledger.examine(_release("x"), new[:1])),
                f"examine a release of {images:,} new images": _seconds(lambda: ledger.examine(_release("x"), new)),
                f"examine a release of {images:,} known images": _seconds(lambda: ledger.examine(_release("x"), known)),
                "exposure of every acquisition": _seconds(ledger.exposures, rounds=1),
            }
        size = path.stat().st_size
    print(f"{count:,} acquisitions, {size / 1e6:.0f} MB")
    print(table(["", "processor seconds"], [[name, f"{value:.2f}"] for name, value in seconds.items()]))
    if options.save:
        save("ledger", {"acquisitions": count, "images": images, "bytes": size, "processor_seconds": seconds})


if __name__ == "__main__":
    main()
