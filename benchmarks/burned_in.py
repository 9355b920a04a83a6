"""The search for burned-in text: how often it flags radiographs, how often it finds planted lines, and its speed.

    python benchmarks/burned_in.py --data FOLDER...   radiographs, such as NIH ChestX-ray14's at 256 x 256

Radiographs carry real text ("PORTABLE", "AP ERECT"), so the flag rate is no rate of false alarms; look at the list that
`--list FILE` writes. With `--split` the test patients are counted apart: the search was made without looking at them.
Planted lines are drawn on chest phantoms, which hold no text, of 256 x 256 and, fewer, of 2048 x 2048 pixels.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common import save, table
from veilray.exchange.release.burned_in import find_text
from veilray.images.phantom import write_phantoms
from veilray.images.radiograph import FloatImage, to_pixels
from veilray.images.read import read_radiograph

TEXT = "DOE JANE 1950"
SIZES = {256: (8, 10, 14, 20), 2048: (12, 16, 28, 80)}
"""Font sizes in pixels, by the side of the image; capitals are about 0.7 of them high."""
CONTRASTS = (0.2, 0.3, 0.5, 1.0)
"""How much brighter than the image around it, at most up to white."""


def main() -> None:
    """Measure and print; with --save also write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="folders of radiographs")
    parser.add_argument("--split", type=Path, help="CSV file (image_id, split) of which test is reported apart")
    parser.add_argument("--list", type=Path, help="CSV file to add what was flagged to")
    parser.add_argument("--images", type=int, help="at most so many radiographs")
    parser.add_argument("--phantoms", type=int, default=60, help="phantoms to plant text on; a quarter of them large")
    parser.add_argument("--save", action="store_true", help="write results/burned_in.json")
    options = parser.parse_args()
    counts = {256: options.phantoms, 2048: -(-options.phantoms // 4)}
    result: dict[str, Any] = {
        "planted": {str(side): planted(count, side) for side, count in counts.items()},
        "processor_seconds_per_image": speed(),
        "radiographs": {
            folder.name: flagged(folder, options.split, options.list, options.images) for folder in options.data
        },
    }
    if options.save:
        save("burned_in", result)


def flagged(folder: Path, split: Path | None, list_file: Path | None, most: int | None) -> dict[str, Any]:
    """How many radiographs are flagged, by set."""
    sets: dict[str, str] = {}
    if split is not None:
        with split.open(newline="", encoding="utf-8") as stream:
            sets = {row["image_id"]: row["split"] for row in csv.DictReader(stream)}
    counts: dict[str, list[int]] = {}
    lines = []
    for path in sorted(folder.glob("*.png"))[:most]:
        found = find_text(read_radiograph(path).pixels)
        name = "test" if sets.get(path.stem) == "test" else "others"
        count = counts.setdefault(name, [0, 0])
        count[0] += bool(found)
        count[1] += 1
        lines += [[path.stem, name, box.left, box.top, box.width, box.height] for box in found]
    rows = [[name, flags, images, f"{flags / images:.3f}"] for name, (flags, images) in sorted(counts.items())]
    print(table([folder.name, "flagged", "of", "share"], rows))
    if list_file is not None:
        with list_file.open("a", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([["image_id", "set", "x", "y", "width", "height"], *lines])
    return {name: {"flagged": flags, "images": images} for name, (flags, images) in counts.items()}


def planted(phantoms: int, side: int) -> dict[str, Any]:
    """How often planted lines are found, by font size and contrast; and how often plain phantoms are flagged."""
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder), patients=phantoms, follow_ups=1, seed=5, size=side)
        images = [read_radiograph(path).pixels for path in sorted(Path(folder).glob("*.png"))[:phantoms]]
    plain = sum(bool(find_text(image)) for image in images)
    print(f"plain phantoms of {side} x {side} flagged: {plain} of {len(images)}")
    random = np.random.default_rng(0)
    shares: dict[str, dict[str, float]] = {}
    for size, contrast in itertools.product(SIZES[side], CONTRASTS):
        hits = sum(bool(find_text(plant(image, random, size, contrast))) for image in images)
        shares.setdefault(str(size), {})[str(contrast)] = hits / len(images)
    rows = [[size, *(f"{share:.2f}" for share in found.values())] for size, found in shares.items()]
    print(table(["font size", *(f"contrast {contrast:g}" for contrast in CONTRASTS)], rows))
    return {"text": TEXT, "phantoms": len(images), "plain_flagged": plain, "found": shares}


def plant(image: FloatImage, random: np.random.Generator, size: int, contrast: float) -> FloatImage:
    """The image with a line of text at a random place, brighter than its surroundings by `contrast`."""
    mask = Image.new("L", (image.shape[1], image.shape[0]))
    font = ImageFont.load_default(size)
    _, _, right, bottom = font.getbbox(TEXT)
    place = random.integers(0, image.shape[1] - int(right)), random.integers(0, image.shape[0] - int(bottom))
    ImageDraw.Draw(mask).text((int(place[0]), int(place[1])), TEXT, fill=255, font=font)
    levels = np.rint(np.clip(image + np.float32(contrast) * np.asarray(mask, np.float32) / 255, 0, 1) * 255)
    return to_pixels(levels.astype(np.uint8))


def speed() -> dict[str, float]:
    """Processor seconds an image, by side: noise smoothed to the look of tissue, which is searched to the end."""
    seconds = {}
    for side in (256, 1024, 2048):
        small = np.random.default_rng(0).random((side // 8, side // 8), dtype=np.float32)
        image = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
        image = plant(np.clip(image, 0, 1), np.random.default_rng(1), side // 20, 1.0)
        find_text(image)
        start = time.process_time()
        for _ in range(5):
            find_text(image)
        seconds[str(side)] = (time.process_time() - start) / 5
    print(table(["side", "processor seconds an image"], [[side, f"{value:.4f}"] for side, value in seconds.items()]))
    return seconds


if __name__ == "__main__":
    main()
