"""How fast images reach the network: a gather from a cohort's memory map against the released style.

    python benchmarks/loader.py [--images 2000] [--rounds 7] [--save]

Released style: all images as float32 arrays in memory, a Dataset that hands out one at a time, a shuffling DataLoader
that stacks them. PNG style: the same DataLoader, each image decoded by Pillow when it is wanted. Ours:
`Cohort.gather` of shuffled rows into a buffer. Each delivers float32 batches of 256 x 256 in [0, 1] on one thread, from
a warm page cache. The sides take turns; figures are medians over the rounds, in images a second of processor time,
which is what a core delivers when nothing else runs on it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from common import save, table
from synthetic import SIDE, synthetic_cohort
from veilray.cohort.cohort import Cohort

BATCHES = (4, 8, 16, 32)
TARGET = 30_000
PNG_IMAGES = 200


class InMemory(Dataset[torch.Tensor]):
    """The released style: a float32 array of all images."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.tensor(self.images[row], dtype=torch.float32).unsqueeze(0)


class Decoded(Dataset[torch.Tensor]):
    """One PNG after another, decoded when it is wanted."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.paths[row]) as image:
            return torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float32) / 255).unsqueeze(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write results/loader.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, record = [], {}
    with tempfile.TemporaryDirectory() as folder:
        cohort = Cohort.open(synthetic_cohort(Path(folder) / "cohort", options.images, sparse=False))
        memory = InMemory(cohort.gather(np.arange(options.images)))
        pictures = Decoded(_write_pictures(Path(folder) / "png", cohort))
        for batch in BATCHES:
            speeds = _measure(cohort, memory, pictures, batch=batch, rounds=options.rounds)
            released, decoded, ours = speeds["released"], speeds["png"], speeds["veilray"]
            rows.append([batch, f"{decoded:,.0f}", f"{released:,.0f}", f"{ours:,.0f}", f"{ours / released:.1f}x"])
            record[f"batch {batch}"] = speeds | {"ratio to released": ours / released}
    print(table(["batch", "PNG, images/s", "released, images/s", "veilray, images/s", "veilray / released"], rows))
    print(f"at least {TARGET:,} images/s a core are asked for")
    if options.save:
        save("loader", {"images": options.images, "rounds": options.rounds, "images_per_core_second": record})


def _measure(cohort: Cohort, memory: InMemory, pictures: Decoded, *, batch: int, rounds: int) -> dict[str, float]:
    buffer = np.empty((batch, SIDE, SIDE), dtype=np.float32)
    generator = np.random.default_rng(batch)

    def gather() -> int:
        whole = len(cohort) // batch * batch
        for rows in generator.permutation(len(cohort))[:whole].reshape(-1, batch):
            cohort.gather(rows, buffer)
        return whole

    def released() -> int:
        return sum(len(images) for images in DataLoader(memory, batch_size=batch, shuffle=True))

    def decoded() -> int:
        return sum(len(images) for images in DataLoader(pictures, batch_size=batch, shuffle=True))

    sides = {"png": decoded, "released": released, "veilray": gather}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            speed = _speed(side)
            if number:  # the first round warms up
                speeds[name].append(speed)
    return {name: statistics.median(values) for name, values in speeds.items()}


def _speed(side: Callable[[], int]) -> float:
    began = time.process_time()
    count = side()
    return count / (time.process_time() - began)


def _write_pictures(folder: Path, cohort: Cohort) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{row}.png" for row in range(PNG_IMAGES)]
    for row, path in enumerate(paths):
        levels = np.rint(cohort.gather(np.array([row]))[0] * 255).astype(np.uint8)
        # Smooth like a radiograph, since noise does not compress and decodes faster than pictures do.
        Image.fromarray(levels).resize((16, 16)).resize((SIDE, SIDE)).save(path)
    return paths


if __name__ == "__main__":
    main()
