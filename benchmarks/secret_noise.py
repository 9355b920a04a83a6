"""How fast secret noise is drawn on one core, at each level, beside its bits alone and other noise of the same size.

Processor time, so that other work on the machine has a say only through the caches.

python benchmarks/secret_noise.py [--size 1024] [--images 40] [--rounds 5] [--save]
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from common import save, table
from veilray.cohort.obfuscate import _to_levels
from veilray.cohort.pixels import full_scale
from veilray.obfuscation.noise import entropy_normal, fill_standard_normal
from veilray.obfuscation.secret import LEVELS, secret_field


def _kinds(size: int) -> dict[str, Callable[[int], object]]:
    shape = (size, size)
    clean = np.full(shape, 0.5, dtype=np.float32)

    def drawn(std: float) -> Callable[[int], np.ndarray]:
        def draw(number: int) -> np.ndarray:
            digest = hashlib.sha256(str(number).encode()).digest()
            return secret_field(secret=b"s" * 32, digest=digest, geometry="native", std=std, shape=shape)

        return draw

    def released(std: float, dtype: type[np.unsignedinteger[Any]]) -> Callable[[int], object]:
        """As `write_release` does it: added, shifted, scaled, rounded and clamped in place."""
        draw = drawn(std)

        def release(number: int) -> object:
            field = draw(number)
            field += clean
            field += np.float32(0.1)
            return _to_levels(field, full_scale(np.dtype(dtype)), np.dtype(dtype))

        return release

    def philox(number: int) -> None:
        fill_standard_normal(torch.empty(shape), key=number)

    zeros = bytes(4 * size * size)
    ciphers = {
        "bits alone, AES-256-CTR": Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))),
        "bits alone, ChaCha20": Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), None),
    }

    def bits(name: str) -> Callable[[int], object]:
        return lambda _: ciphers[name].encryptor().update(zeros)

    kinds: dict[str, Callable[[int], object]] = {f"secret, std {std:g}": drawn(std) for std in LEVELS}
    return kinds | {
        **{
            f"secret, std {std:g}, added, clamped and rounded to {dtype.__name__}": released(std, dtype)
            for std in LEVELS
            for dtype in (np.uint8, np.uint16)
        },
        "entropy": lambda number: entropy_normal(shape),
        "Philox (training)": philox,
        **{name: bits(name) for name in ciphers},
    }


def _images_per_second(draw: Callable[[int], object], images: int) -> float:
    began = time.process_time()
    for number in range(images):
        draw(number)
    return images / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/secret_noise.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = _kinds(options.size)
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for draw in kinds.values():
        draw(0)
    for _ in range(options.rounds):  # in turns, so that a slow minute of the machine hits all of them
        for name, draw in kinds.items():
            rates[name].append(_images_per_second(draw, options.images))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(table(["noise", "images/s on one core"], [[name, f"{rate:.1f}"] for name, rate in medians.items()]))
    if options.save:
        record = {"size": options.size, "images": options.images, "rounds": options.rounds}
        save(
            "secret_noise",
            {**record, "median_images_per_second": medians, "best": {k: max(v) for k, v in rates.items()}},
        )


if __name__ == "__main__":
    main()
