"""Make docs/images/phantom.png, the picture in the README: one phantom, noisy, denoised and clean.

    python benchmarks/make_readme_picture.py [MODEL...] [--seed 2025] [--out docs/images/phantom.png]

MODEL is a network that ships, or a run; without any it is the one that `veilray denoise` takes by itself. No network
that ships was trained on phantoms, and the demo draws its own from another seed. The captions give PSNR, outputs
clamped.
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
from veilray.obfuscation.config import NoiseConfig
from veilray.obfuscation.noise import apply_draws, keyed_draw

SIDE, GAP, CAPTION = 256, 8, 24
# Where the detail is cut from a phantom of SIDE pixels: the right lower lung, with ribs, vessels and the heart's edge.
TOP, LEFT, DETAIL = 112, 60, 64
NOISE = NoiseConfig(mean=0.1, std=0.2)


def main() -> None:
    """Denoise one phantom with every run and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["default"], metavar="MODEL", help="networks that ship, or runs")
    parser.add_argument("--seed", type=int, default=2025, help="seed of the phantom and of its noise")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "phantom.png")
    args = parser.parse_args()

    clean = chest_phantom(patient=1, follow_up=0, seed=args.seed, size=SIDE)
    noisy = obfuscated(clean, NOISE, seed=args.seed, image_id="readme picture")
    columns = [(f"noisy, {_decibels(noisy, clean)}", noisy)]
    for model in args.models:
        output = Denoiser.load(model)(noisy, mean=NOISE.mean_range[0])
        said = "veilray denoise" if model == "default" else Path(model).name
        columns.append((f"{said}, {_decibels(output, clean)}", output))
    columns.append(("clean", clean))
    with replacing(args.out) as part:
        _draw(columns).save(part, format="PNG", optimize=True)
    print(f"{args.out}: {', '.join(caption for caption, _ in columns)}; {args.out.stat().st_size:,} bytes")


def obfuscated(clean: FloatImage, noise: NoiseConfig, *, seed: int, image_id: str) -> FloatImage:
    """The image, (H, W), under noise drawn for this name."""
    draw = keyed_draw(noise, seed=seed, epoch=0, image_id=image_id)
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
