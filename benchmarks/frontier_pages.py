"""The tables and pictures of docs/explanation/frontier.md, of what frontier.py measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from baselines_pages import markdown, with_table
from estimates import with_interval
from veilray.files import replacing
from veilray.images.phantom import chest_phantom
from veilray.images.radiograph import FloatImage, to_levels
from veilray.inference.denoiser import Denoiser
from veilray.obfuscation.noise import add_gaussian

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "explanation" / "frontier.md"
FIGURE = DOCS / "images" / "frontier.svg"
PICTURE = DOCS / "images" / "invented.png"
SHOWN = ("L1", "perceptual, 0.1", "adversarial, 0.02")
SIDE, GAP, CAPTION = 256, 8, 24
TOP, LEFT, DETAIL = 96, 60, 64
LIMIT = 0.1
"""Errors of this size are wholly blue or red."""
SHOWN_TEXT = (
    f"A phantom that no network saw: noisy, clean, restored by {'; '.join(SHOWN)}. Above, a detail; below, the whole "
    f"image, or its difference from the clean one, wholly blue or red from {LIMIT} on"
)


def write_page(record: dict[str, Any], page: Path = PAGE, figure: Path = FIGURE) -> None:
    """Write the tables of a record into the page, between their marks, and draw the frontier."""
    text = page.read_text(encoding="utf-8")
    parts = {
        "frontier": f"{_scores(record)}\n\n![LPIPS over PSNR, a point for each objective](../images/{FIGURE.name})",
        "inventions": f"{_inventions(record)}\n\n![{SHOWN_TEXT}](../images/{PICTURE.name})",
    }
    for name, table in parts.items():
        text = with_table(text, name, table, page, script="frontier.py")
    page.write_text(text, encoding="utf-8")
    _draw_frontier(record, figure)
    print(f"written: {page}, {figure}")


def write_inventions(record: dict[str, Any], page: Path = PAGE) -> None:
    """Write the table of what `default` invents into the page, between its marks."""
    rows = []
    for level, networks in record["levels"].items():
        shipped = networks["default"]
        for name, one in networks.items():
            less = 100 * (shipped["lpips"]["mean"] / one["lpips"]["mean"] - 1)
            lpips = [with_interval(one["lpips"], "{:.4f}"), "" if one is shipped else f"{less:+.0f} %"]
            named = "`default`" if one is shipped else name
            rows.append([level, named, with_interval(one["psnr"], "{:.2f}"), *lpips, *_invented(one)])
    facts = (
        f"{record['images']} {record['split']} images of {record['patients']} patients, mean {record['mean']}; 95 % "
        f"intervals by patient. {record['hardware']['device']}, {record['hardware']['date']}."
    )
    header = ["noise", "network", "PSNR, dB", "LPIPS", "LPIPS of `default` against it", *_invented_header(shipped)]
    text = f"{facts}\n\n{markdown(header, rows)}"
    text = with_table(page.read_text(encoding="utf-8"), "default", text, page, script="inventions.py")
    page.write_text(text, encoding="utf-8")
    print(f"written: {page}")


def _scores(record: dict[str, Any]) -> str:
    objectives = record["objectives"]
    plain = objectives["L1"]
    rows = []
    for name, one in objectives.items():
        against = "" if one is plain else f"{100 * (one['lpips']['mean'] / plain['lpips']['mean'] - 1):+.0f} %"
        rows.append(
            [
                name,
                with_interval(one["psnr"], "{:.2f}"),
                with_interval(one["ssim"], "{:.4f}"),
                with_interval(one["lpips"], "{:.4f}"),
                against,
                f"{one['seconds'] / 60:.1f}" if "seconds" in one else "",
            ]
        )
    facts = (
        f"{record['images']} {record['split']} images of {record['patients']} patients, noise "
        f"{record['noise']['std']}, mean {record['noise']['mean']}; 95 % intervals by patient. From {record['start']} "
        f"(weights {record['start_sha256'][:12]}), {record['epochs']} epochs of {record['steps'] // record['epochs']} "
        f"steps, one seed. {record['hardware']['device']}, {record['hardware']['date']}."
    )
    header = ["objective", "PSNR, dB", "SSIM", "LPIPS", "LPIPS against L1", "minutes"]
    return f"{facts}\n\n{markdown(header, rows)}"


def _inventions(record: dict[str, Any]) -> str:
    rows = [[name, *_invented(one)] for name, one in record["objectives"].items()]
    return markdown(["objective", *_invented_header(record["objectives"]["L1"])], rows)


def _invented(one: dict[str, Any]) -> list[str]:
    bands = [with_interval(value, "{:+.3f}") for key, value in one.items() if key.startswith("unsupported")]
    return [*bands, *(with_interval(one[f"blobs {fate}"], "{:.1f}") for fate in ("invented", "lost"))]


def _invented_header(one: dict[str, Any]) -> list[str]:
    bands = [key for key in one if key.startswith("unsupported")]
    return [*bands, "blobs invented, an image", "blobs lost, an image"]


def _draw_frontier(record: dict[str, Any], path: Path) -> None:
    mpl.rcParams.update({"svg.hashsalt": "frontier", "font.size": 9})
    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, one in record["objectives"].items():
        axes.plot(one["psnr"]["mean"], one["lpips"]["mean"], "o", color="#0072b2", ms=4)
        axes.annotate(name, (one["psnr"]["mean"], one["lpips"]["mean"]), (4, 3), textcoords="offset points", size=7)
    axes.set_xlabel("PSNR, dB (less distortion to the right)")
    axes.set_ylabel("LPIPS (better looks below)")
    axes.margins(x=0.2)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def draw_phantom(denoisers: Mapping[str, Denoiser], path: Path = PICTURE) -> None:
    """A phantom that no network saw: noisy, clean, restored by some objectives, and what each differs by."""
    clean = chest_phantom(patient=1, follow_up=0, seed=2025, size=SIDE)
    noise = torch.Generator().manual_seed(7)
    noisy = add_gaussian(torch.from_numpy(clean), mean=0.1, std=0.2, generator=noise).numpy()
    columns = [("noisy", noisy, None), ("clean", clean, None)]
    for name in SHOWN:
        if name in denoisers:
            output = denoisers[name](noisy, mean=0.1)
            columns.append((name, output, output - clean))
    with replacing(path) as part:
        _picture(columns).save(part, format="PNG", optimize=True)
    print(f"written: {path}")


def _picture(columns: list[tuple[str, FloatImage, FloatImage | None]]) -> Image.Image:
    """Captions, magnified details, and below them the whole differences from the clean phantom."""
    width = len(columns) * SIDE + (len(columns) - 1) * GAP
    canvas = Image.new("RGB", (width, CAPTION + 2 * SIDE + GAP), (255, 255, 255))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=16)
    for index, (caption, pixels, difference) in enumerate(columns):
        left = index * (SIDE + GAP)
        detail = to_levels(pixels, np.uint8)[TOP : TOP + DETAIL, LEFT : LEFT + DETAIL]
        pen.text((left, 2), caption, fill=(0, 0, 0), font=font)
        magnified = Image.fromarray(detail).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        canvas.paste(magnified, (left, CAPTION))
        below = Image.fromarray(to_levels(pixels, np.uint8) if difference is None else _coloured(difference))
        canvas.paste(below, (left, CAPTION + SIDE + GAP))
    return canvas


def _coloured(difference: FloatImage) -> npt.NDArray[np.uint8]:
    scaled = np.clip(difference / LIMIT, -1.0, 1.0) / 2.0 + 0.5
    colours: npt.NDArray[np.uint8] = mpl.colormaps["RdBu_r"](scaled, bytes=True)[..., :3]
    return colours
