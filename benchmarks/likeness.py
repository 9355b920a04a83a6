"""How often the likeness errs: other images taken for copies, and copies that are missed.

python benchmarks/likeness.py --data /path/to/data [--save]

`--data` holds `nih256` (one PNG an image, PATIENT_FOLLOWUP.png). The threshold was chosen on the training and
validation patients of `benchmarks/splits/nih256.csv`; the figures are given for them and, apart, for the test patients.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from common import save, table
from veilray.exchange.ledger.likeness import NEAR, as_words, distances, likeness, mirrored
from veilray.images.radiograph import FloatImage, to_levels, to_pixels

SPLIT = Path(__file__).parent / "splits" / "nih256.csv"


def _jpeg(pixels: FloatImage, quality: int) -> FloatImage:
    room = io.BytesIO()
    Image.fromarray(to_levels(pixels, np.uint8)).save(room, "JPEG", quality=quality)
    return to_pixels(np.asarray(Image.open(room)))


def _scaled(pixels: FloatImage, side: int, method: Image.Resampling = Image.Resampling.BICUBIC) -> FloatImage:
    return np.clip(np.asarray(Image.fromarray(pixels).resize((side, side), method)), 0, 1)


def _blanked(pixels: FloatImage) -> FloatImage:
    result = pixels.copy()
    result[:30, :60] = 0
    return result


COPIES: dict[str, Callable[[FloatImage], FloatImage]] = {
    "JPEG, quality 75": lambda pixels: _jpeg(pixels, 75),
    "JPEG, quality 30": lambda pixels: _jpeg(pixels, 30),
    "rescaled to 512": lambda pixels: _scaled(pixels, 512),
    "rescaled to 200, bilinear": lambda pixels: _scaled(pixels, 200, Image.Resampling.BILINEAR),
    "rescaled to 128": lambda pixels: _scaled(pixels, 128),
    "rescaled to 64": lambda pixels: _scaled(pixels, 64),
    "rounded to 4 bits": lambda pixels: np.round(pixels * 15) / np.float32(15),
    "gamma 1.5": lambda pixels: pixels**1.5,
    "gamma 0.6": lambda pixels: pixels**0.6,
    "window [0.15, 0.85]": lambda pixels: np.clip((pixels - 0.15) / 0.7, 0, 1),
    "cropped by 1 % on each side": lambda pixels: pixels[3:-3, 3:-3],
    "cropped by 3 % on each side": lambda pixels: pixels[7:-7, 7:-7],
    "turned by 1 degree": lambda pixels: np.asarray(Image.fromarray(pixels).rotate(1, Image.Resampling.BILINEAR)),
    "corner of 30 x 60 blanked": _blanked,
    "inverted": lambda pixels: 1 - pixels,
    "mirrored": lambda pixels: pixels[:, ::-1],
    "turned by 180 degrees": lambda pixels: pixels[::-1, ::-1],
    "mirrored, inverted, JPEG of quality 75": lambda pixels: _jpeg(1 - pixels[:, ::-1], 75),
    "turned by 90 degrees": lambda pixels: np.rot90(pixels),
}


def _apart(looks: npt.NDArray[np.uint64], look: bytes) -> npt.NDArray[np.int64]:
    """In how many bits a likeness differs from each of `looks`, (N, 4), inverted and mirrored as fits best; (N,)."""
    straight = np.stack([distances(looks, as_words(turned)) for turned in mirrored(look)])
    least: npt.NDArray[np.int64] = np.minimum(straight, 256 - straight).min(axis=0)
    return least


def _measure(folder: Path, names: list[str]) -> dict[str, Any]:
    images = [to_pixels(np.asarray(Image.open(folder / f"{name}.png").convert("L"))) for name in names]
    likenesses = [likeness(pixels) for pixels in images]
    looks = np.stack([as_words(look) for look in likenesses])
    patients = np.array([name.partition("_")[0] for name in names])
    same, other = [], []
    for row in range(1, len(images)):
        apart = _apart(looks[:row], likenesses[row])
        own = patients[:row] == patients[row]
        same.append(apart[own])
        other.append(apart[~own])
    pairs = {"other patients": np.concatenate(other), "same patient, another image": np.concatenate(same)}
    hits = {
        kind: float(
            np.mean(
                [_apart(looks[row : row + 1], likeness(copy(pixels)))[0] <= NEAR for row, pixels in enumerate(images)]
            )
        )
        for kind, copy in COPIES.items()
    }
    return {
        "images": len(images),
        "pairs": {
            kind: {
                "pairs": len(apart),
                "taken for copies": int((apart <= NEAR).sum()),
                "least distance": int(apart.min()),
            }
            for kind, apart in pairs.items()
        },
        "copies found": hits,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--save", action="store_true", help="write results/likeness.json")
    options = parser.parse_args()
    with SPLIT.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    results = {}
    for part, splits in {
        "training and validation patients": ("train", "validation"),
        "test patients": ("test",),
    }.items():
        names = [row["image_id"] for row in rows if row["split"] in splits]
        folder = options.data / "nih256"  # which the split has a few images more than
        found = _measure(folder, [name for name in names if (folder / f"{name}.png").exists()])
        results[part] = found
        print(f"\n{part}: {found['images']} images")
        lines = [[kind, *numbers.values()] for kind, numbers in found["pairs"].items()]
        print(table(["pairs of", "pairs", "taken for copies", "least distance"], lines))
        print(table(["copy", "found"], [[kind, f"{share:.1%}"] for kind, share in found["copies found"].items()]))
    if options.save:
        save("likeness", {"threshold": NEAR, "bits": 256, "results": results})


if __name__ == "__main__":
    main()
