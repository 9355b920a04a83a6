"""How far apart a denoised radiograph keeps its own original and all others, and what reattaching makes of them.

python benchmarks/resemblance.py --data /path/to/data [--model default] [--save]

`--data` holds `nih256` (one PNG an image, PATIENT_FOLLOWUP.png). The test patients of `benchmarks/splits/nih256.csv`,
whom the models that ship have not seen, are obfuscated, denoised, and compared with each original among them. Noisy
images are compared as well: a denoiser that does nothing must not be taken for one that swaps.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np

from common import save, table
from veilray.exchange.reattaching.resemblance import ALIKE, resemblance
from veilray.images.radiograph import FloatImage
from veilray.images.read import read_radiograph
from veilray.inference.denoiser import Denoiser

SPLIT = Path(__file__).parent / "splits" / "nih256.csv"
STDS = (0.1, 0.2, 0.3, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="default", help="as `veilray denoise` takes it")
    parser.add_argument("--save", action="store_true", help="write results/resemblance.json")
    options = parser.parse_args()
    with SPLIT.open(newline="", encoding="utf-8") as stream:
        names = [row["image_id"] for row in csv.DictReader(stream) if row["split"] == "test"]
    paths = [path for name in names if (path := options.data / "nih256" / f"{name}.png").exists()]
    originals = [read_radiograph(path).pixels for path in paths]
    denoiser = Denoiser.load(options.model, device="cpu")
    random = np.random.default_rng(0)
    results: list[dict[str, Any]] = []
    for std in STDS:
        noisy = [np.clip(one + random.normal(0, std, one.shape), 0, 1).astype(np.float32) for one in originals]
        denoised = [denoiser(one, mean=0.0) for one in noisy]
        for kind, images in (
            ("noisy", noisy),
            ("denoised", denoised),
            ("denoised, a corner blanked", _blanked(denoised)),
        ):
            results.append({"images": kind, "std": std, **_compare(images, originals)})
    print(f"{len(originals)} radiographs; threshold {ALIKE}")
    print(table(list(results[0]), [list(row.values()) for row in results]))
    if options.save:
        save(
            "resemblance",
            {"model": options.model, "threshold": ALIKE, "radiographs": len(originals), "results": results},
        )


def _blanked(images: list[FloatImage]) -> list[FloatImage]:
    """As images look whose release had a corner of 30 x 60 pixels blanked."""
    blanked = [image.copy() for image in images]
    for image in blanked:
        image[:30, :60] = 0
    return blanked


def _compare(images: list[FloatImage], originals: list[FloatImage]) -> dict[str, Any]:
    alike = np.array([[resemblance(image, original) for original in originals] for image in images])
    own, others = np.diag(alike), alike[~np.eye(len(alike), dtype=bool)]
    return {
        "least with its own": round(float(own.min()), 4),
        "own left out": int((own < ALIKE).sum()),
        "most with another": round(float(others.max()), 4),
        "pairs with another": len(others),
        "another let through": int((others >= ALIKE).sum()),
    }


if __name__ == "__main__":
    main()
