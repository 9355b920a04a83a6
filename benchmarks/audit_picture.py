"""Make docs/images/audit_phantom.png: what the audit attacks, shown on a phantom.

    python benchmarks/audit_picture.py [--seed 2025]

One phantom patient under the audited levels of noise, below each what the network that ships makes of it, and beside
them the patient's follow-up, which is what re-identification compares with. No network that ships was trained on
phantoms.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from make_readme_picture import obfuscated
from veilray.files import replacing
from veilray.images.phantom import chest_phantom
from veilray.images.radiograph import FloatImage, to_levels
from veilray.inference.denoiser import Denoiser
from veilray.obfuscation.config import NoiseConfig

OUT = Path(__file__).parents[1] / "docs" / "images" / "audit_phantom.png"
SIDE, GAP, CAPTION = 224, 8, 22
LEVELS = (0.1, 0.2, 0.3)
MEAN = 0.1


def main() -> None:
    """Draw the phantom under each level and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=2025, help="seed of the phantom and of its noise")
    seed = parser.parse_args().seed
    first, again = (chest_phantom(patient=1, follow_up=visit, seed=seed, size=256) for visit in (0, 1))
    network = Denoiser.load("default")
    columns = [(("original", first), ("follow-up", again))]
    for std in LEVELS:
        noisy = obfuscated(first, NoiseConfig(mean=MEAN, std=std), seed=seed, image_id="audit picture")
        columns.append(((f"noise {std:g}", noisy), (f"noise {std:g}, denoised", network(noisy, mean=MEAN))))
    with replacing(OUT) as part:
        drawn(columns).save(part, format="PNG", optimize=True)
    print(f"written: {OUT}, {OUT.stat().st_size:,} bytes")


def drawn(columns: list[tuple[tuple[str, FloatImage], ...]]) -> Image.Image:
    """Columns of captioned images."""
    rows = len(columns[0])
    canvas = Image.new("L", (len(columns) * (SIDE + GAP) - GAP, rows * (CAPTION + SIDE + GAP) - GAP), 255)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    for column, shown in enumerate(columns):
        for row, (caption, pixels) in enumerate(shown):
            left, top = column * (SIDE + GAP), row * (CAPTION + SIDE + GAP)
            pen.text((left, top + 2), caption, fill=0, font=font)
            small = Image.fromarray(to_levels(pixels, np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            canvas.paste(small, (left, top + CAPTION))
    return canvas


if __name__ == "__main__":
    main()
