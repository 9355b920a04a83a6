"""How fast the metrics are, against scikit-image on the same images.

    python benchmarks/metrics.py [--images 32] [--rounds 15] [--lpips-backbone FILE] [--save]

Chest phantoms of 256 x 256 and noisy copies, float32, on one thread. scikit-image scores one image after another; ours
score the batch at once, and freed memory is kept, as `veilray train` and `veilray evaluate` do. The sides take turns;
figures are medians over the rounds, in milliseconds of processor time for an image, which is what a core delivers when
nothing else runs on it. scikit-image computes in the precision it is given, and in float64 when it is given 8-bit
images, as radiographs mostly are, so both are shown. The largest difference of the scores from scikit-image's in
float64 is printed beside them. LPIPS has no counterpart in scikit-image.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from common import save, table
from veilray.images.phantom import chest_phantom
from veilray.metrics.lpips import load_lpips
from veilray.metrics.psnr import psnr
from veilray.metrics.ssim import ssim
from veilray.parallel.devices import keep_freed_memory

SIDE = 256
TARGET = 10
Images = npt.NDArray[np.floating]
Score = Callable[[], npt.NDArray[np.float64]]

GAUSSIAN: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
OURS, SINGLE, DOUBLE = "ours", "scikit-image float32", "scikit-image float64"


def main() -> None:
    """Measure, print a table, and with --save record it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--lpips-backbone", type=Path)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    output, target = pairs(options.images)
    figures = {}
    with torch.inference_mode():
        for name, sides in metrics(output, target, options.lpips_backbone).items():
            figures[name] = measure(sides, rounds=options.rounds, images=options.images)
    print(report(figures))
    if options.save:
        save("metrics", {"images": options.images, "side": SIDE, "rounds": options.rounds, "metrics": figures})


def pairs(images: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Noisy and clean phantoms, each (images, H, W), float32, [0, 1]."""
    target = np.stack([chest_phantom(patient=number, follow_up=0, seed=1, size=SIDE) for number in range(images)])
    noise = np.random.default_rng(2).normal(0.0, 0.05, target.shape)
    return np.clip(target + noise, 0.0, 1.0).astype(np.float32), target


def metrics(output: Images, target: Images, backbone: Path | None) -> dict[str, dict[str, Score]]:
    """metric -> side -> what scores all images."""
    x, y = torch.from_numpy(output)[:, None], torch.from_numpy(target)[:, None]

    def reference(score: Callable[..., float], **options: Any) -> dict[str, Score]:
        def in_precision(precision: npt.DTypeLike) -> Score:
            a, b = output.astype(precision), target.astype(precision)
            return lambda: np.array([score(t, o, data_range=1.0, **options) for o, t in zip(a, b, strict=True)])

        return {SINGLE: in_precision(np.float32), DOUBLE: in_precision(np.float64)}

    sides = {
        "PSNR": {OURS: lambda: psnr(x, y).numpy(), **reference(peak_signal_noise_ratio)},
        "SSIM 11x11": {OURS: lambda: ssim(x, y).numpy(), **reference(structural_similarity, **GAUSSIAN)},
        "SSIM 3x3": {OURS: lambda: ssim(x, y, window=3).numpy(), **reference(structural_similarity, win_size=3)},
    }
    if backbone is not None:
        network = load_lpips(backbone)
        sides["LPIPS"] = {OURS: lambda: network(x, y).numpy()}
    return sides


def measure(sides: dict[str, Score], *, rounds: int, images: int) -> dict[str, float]:
    """Milliseconds an image of each side, ratios of scikit-image's to ours, and the largest difference of scores."""
    scores = {side: score() for side, score in sides.items()}
    spent: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, score in sides.items():
            started = time.process_time()
            score()
            spent[side].append((time.process_time() - started) * 1e3 / images)
    figures = {f"{side}, ms": statistics.median(own) for side, own in spent.items()}
    for side in sides.keys() & {SINGLE, DOUBLE}:
        ratios = [theirs / ours for theirs, ours in zip(spent[side], spent[OURS], strict=True)]
        figures[f"{side} / ours"] = statistics.median(ratios)
    if DOUBLE in sides:
        figures["largest difference"] = float(np.abs(scores[OURS] - scores[DOUBLE]).max())
    return figures


def report(figures: dict[str, dict[str, float]]) -> str:
    """The figures as a table."""
    header = ["metric", "ours ms", "float32 ms", "ratio", "float64 ms", "ratio", "largest difference"]
    keys = ("{}, ms", "{} / ours")
    columns = [keys[0].format(OURS), *(key.format(side) for side in (SINGLE, DOUBLE) for key in keys)]
    rows = []
    for name, own in figures.items():
        difference = f"{own['largest difference']:.1e}" if "largest difference" in own else "-"
        rows.append([name, *(f"{own[key]:.3g}" if key in own else "-" for key in columns), difference])
    return f"{table(header, rows)}\n\nSSIM is meant to be at least {TARGET} times as fast as scikit-image."


if __name__ == "__main__":
    main()
