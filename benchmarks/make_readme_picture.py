"""Make docs/images/phantom.png, the picture in the README: one phantom, noisy, denoised and clean.

    python benchmarks/make_readme_picture.py RUN [RUN...] [--seed 2025] [--out docs/images/phantom.png]

The phantom is drawn from a seed that the demo does not use, so no network that the demo trained has seen it. Its noise
is that of the first run's configuration, drawn from the same seed. The captions give PSNR with the output clamped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from veilray.files import replacing
from veilray.images.phantom import chest_phantom
from veilray.images.radiograph import FloatImage, to_levels
from veilray.inference.denoiser import Denoiser
from veilray.metrics.psnr import psnr
from veilray.obfuscation.noise import apply_draws, keyed_draw
from veilray.training.run import RunFolder

SIDE, GAP, CAPTION = 256, 8, 24
# Where the detail is cut from a phantom of SIDE pixels: the right lower lung, with ribs, vessels and the heart's edge.
TOP, LEFT, DETAIL = 112, 60, 64
NAMES = {"unet": "U-Net", "unetpp": "U-Net++"}


def main() -> None:
    """Denoise one phantom with every run and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="trained run folders")
    parser.add_argument("--seed", type=int, default=2025, help="seed of the phantom and of its noise")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "phantom.png")
    args = parser.parse_args()

    clean = chest_phantom(patient=1, follow_up=0, seed=args.seed, size=SIDE)
    noisy = _obfuscate(clean, args.runs[0], seed=args.seed)
    columns = [(f"noisy, {_decibels(noisy, clean)}", noisy)]
    for run in args.runs:
        output = Denoiser.load(run)(noisy)
        columns.append((f"{NAMES[RunFolder(run).config().model.name]}, {_decibels(output, clean)}", output))
    columns.append(("clean", clean))
    with replacing(args.out) as part:
        _draw(columns).save(part, format="PNG", optimize=True)
    print(f"{args.out}: {', '.join(caption for caption, _ in columns)}; {args.out.stat().st_size:,} bytes")


def _obfuscate(clean: FloatImage, run: Path, *, seed: int) -> FloatImage:
    noise = RunFolder(run).config().noise
    draw = keyed_draw(noise, seed=seed, epoch=0, image_id="readme picture")
    noisy = apply_draws(torch.from_numpy(clean)[None, None], [draw], clip=noise.clip)
    pixels: FloatImage = noisy[0, 0].numpy()
    return pixels


def _decibels(image: FloatImage, clean: FloatImage) -> str:
    output, target = (torch.from_numpy(pixels)[None, None] for pixels in (image, clean))
    return f"{psnr(output.clamp(0.0, 1.0), target, data_range=1.0).item():.1f} dB"


def _draw(columns: list[tuple[str, FloatImage]]) -> Image.Image:
    """Captions above whole images, a magnified detail of each below."""
    width = len(columns) * SIDE + (len(columns) - 1) * GAP
    canvas = Image.new("L", (width, CAPTION + 2 * SIDE + GAP), 255)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=16)
    for index, (caption, pixels) in enumerate(columns):
        left = index * (SIDE + GAP)
        levels = to_levels(pixels, np.uint8)
        detail = levels[TOP : TOP + DETAIL, LEFT : LEFT + DETAIL]
        pen.text((left, 2), caption, fill=0, font=font)
        canvas.paste(_framed(levels), (left, CAPTION))
        magnified = Image.fromarray(detail).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        canvas.paste(magnified, (left, CAPTION + SIDE + GAP))
    return canvas


def _framed(levels: npt.NDArray[np.integer]) -> Image.Image:
    """The whole image, with the place of its detail framed."""
    image = Image.fromarray(levels)
    corners = (LEFT - 1, TOP - 1, LEFT + DETAIL, TOP + DETAIL)
    ImageDraw.Draw(image).rectangle(corners, outline=255)
    return image


if __name__ == "__main__":
    main()
