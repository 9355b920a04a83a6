"""Inference against the released style, side by side: same U-Net, same weights, batch 4 at 256 px, two threads.

    python benchmarks/inference.py [--rounds 5] [--runs RUN...] [--save | --out FILE]

Released style: the plain network, eager, fp32, NCHW, `torch.no_grad()`. Ours: `Denoiser.denoise` (folded batch
normalisation, channels-last, bf16 where the processor multiplies it) with huge pages and memory kept, as `veilray
denoise` has them. Each side runs in its own process; the sides take turns; figures are medians over the rounds. The
change of PSNR is measured on test radiographs, of the NIH set where VEILRAY_REAL_DATA names it and else phantoms, with
weights trained here for `--seconds` (an untrained network's PSNR says nothing) or those of `--runs`. What bf16 changes
is measured too, on processors that are slow at it as well.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import alternate, hardware, medians, save, table
from veilray.images.phantom import chest_phantom
from veilray.images.read import read_radiograph
from veilray.inference.denoiser import Denoiser
from veilray.metrics.psnr import psnr
from veilray.models.build import build_model
from veilray.models.config import ModelConfig
from veilray.models.weights import load_model, save_weights
from veilray.obfuscation.config import NoiseConfig
from veilray.obfuscation.noise import add_gaussian
from veilray.parallel.devices import keep_freed_memory
from veilray.training.run import RunFolder

SPLIT = Path(__file__).parent / "splits" / "nih256.csv"
NOISE = NoiseConfig(mean=0.1, std=0.2)
THREADS, SIZE, BATCH = 2, 256, 4
WARM_UP, TIMED = 3, 9
IMAGES = {"train": 96, "test": 16}
CROP = 64
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}


def main() -> None:
    """Parse, then measure every network, or one side of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--runs", type=Path, nargs="+", help="trained runs to measure, in place of --widths")
    parser.add_argument("--seconds", type=float, default=60.0, help="of two cores, of training, for each width")
    parser.add_argument("--save", action="store_true", help="write results/inference.json")
    parser.add_argument("--out", type=Path, help="write the record to this file")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.side:
        print(json.dumps(_measure(options.side, options.weights)))
        return
    with tempfile.TemporaryDirectory() as folder:
        networks = {
            name: _compare(path, rounds=options.rounds) for name, path in _weights(options, Path(folder)).items()
        }
    header = ["U-Net", "released ms", "Veilray ms", "ratio", "PSNR dB", "change dB", "change in bf16 dB"]
    print(table(header, [_row(name, figures) for name, figures in networks.items()]))
    print("The aim is 2.9 times as fast, with PSNR changed by less than 0.02 dB.")
    record = {"threads": THREADS, "batch": BATCH, "size": SIZE, "timed_batches": TIMED, "networks": networks}
    if options.out:
        options.out.write_text(json.dumps({"hardware": hardware(), **record}, indent=2) + "\n", encoding="utf-8")
    if options.save:
        save("inference", record)


def _compare(weights: Path, *, rounds: int) -> dict[str, object]:
    def side(name: str, environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        return ["--side", name, "--weights", str(weights)], environment

    measured = alternate(
        __file__, {"released": side("released", {}), "veilray": side("veilray", HUGE_PAGES)}, rounds=rounds
    )
    # Once is enough: only its PSNR counts, and emulated bf16 is slow.
    lowered = alternate(__file__, {"bf16": side("bf16", HUGE_PAGES)}, rounds=1)["bf16"][0]
    released, ours = medians(measured["released"]), medians(measured["veilray"])
    return {
        "released_ms": released["milliseconds"],
        "veilray_ms": ours["milliseconds"],
        "ratio": released["milliseconds"] / ours["milliseconds"],
        "psnr": released["psnr"],
        "psnr_change": ours["psnr"] - released["psnr"],
        "psnr_change_bf16": lowered["psnr"] - released["psnr"],
        "rounds": measured,
    }


def _row(name: str, figures: dict[str, object]) -> list[str]:
    forms = {
        "released_ms": "{:.0f}",
        "veilray_ms": "{:.0f}",
        "ratio": "{:.2f}x",
        "psnr": "{:.2f}",
        "psnr_change": "{:+.4f}",
        "psnr_change_bf16": "{:+.4f}",
    }
    return [name, *(form.format(figures[key]) for key, form in forms.items())]


def _released(weights: Path) -> Callable[[Tensor], Tensor]:
    model = load_model(weights)

    @torch.no_grad()
    def denoise(noisy: Tensor) -> Tensor:
        return model(noisy)

    return denoise


def _veilray(weights: Path) -> Callable[[Tensor], Tensor]:
    keep_freed_memory()  # as `veilray denoise` does
    return Denoiser(load_model(weights), noise=NOISE, device="cpu").denoise


def _bf16(weights: Path) -> Callable[[Tensor], Tensor]:
    return Denoiser(load_model(weights), noise=NOISE, device="cpu", precision="bf16").denoise


SIDES = {"released": _released, "veilray": _veilray, "bf16": _bf16}


def _measure(side: str, weights: Path) -> dict[str, float]:
    """Median milliseconds of a batch, and mean PSNR over the test images, of one side."""
    denoise = SIDES[side](weights)
    clean = _images("test", IMAGES["test"])
    noisy = add_gaussian(
        clean, mean=NOISE.mean, std=NOISE.std_range[0], clip=NOISE.clip, generator=torch.Generator().manual_seed(1)
    )
    outputs = torch.cat([denoise(batch).clamp(0.0, 1.0) for batch in noisy.split(BATCH)])
    figures = {"psnr": psnr(outputs, clean, data_range=1.0).mean().item()}
    if side == "bf16":
        return figures
    seconds = []
    for _ in range(WARM_UP + TIMED):
        began = time.perf_counter()
        denoise(noisy[:BATCH])
        seconds.append(time.perf_counter() - began)
    return {"milliseconds": 1000 * statistics.median(seconds[WARM_UP:]), **figures}


def _weights(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Weights to measure, by name: of the runs given, or of networks trained here."""
    if options.runs:
        return {run.name: RunFolder(run).best_weights for run in options.runs}
    clean = _images("train", IMAGES["train"])
    networks = {}
    for width in options.widths:
        networks[f"width {width}"] = folder / f"{width}.safetensors"
        _train(clean, width=width, seconds=options.seconds, path=networks[f"width {width}"])
    return networks


def _images(split: str, count: int) -> Tensor:
    """(count, 1, SIZE, SIZE): radiographs of the NIH set's split, or phantoms of other patients in each split."""
    root = os.environ.get("VEILRAY_REAL_DATA")
    if root:
        with SPLIT.open(encoding="utf-8", newline="") as stream:
            names = [row["image_id"] for row in csv.DictReader(stream) if row["split"] == split]
        files = [Path(root) / "data" / "nih256" / f"{name}.png" for name in names]
        # The split names the originals of 1024 px too, which lie elsewhere.
        pixels = [read_radiograph(file).pixels for file in [file for file in files if file.is_file()][:count]]
    else:
        first = 0 if split == "train" else IMAGES["train"]
        pixels = [chest_phantom(patient=first + i, follow_up=0, seed=1, size=SIZE) for i in range(count)]
    return torch.from_numpy(np.stack(pixels)).unsqueeze(1)


def _train(clean: Tensor, *, width: int, seconds: float, path: Path) -> None:
    """A U-Net trained for some seconds on crops with fresh noise, its learning rate falling to zero."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(width=width)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    # Processor time, so that other work on the machine does not cut the training short.
    began, steps = time.process_time(), 0
    while (spent := (time.process_time() - began) / (THREADS * seconds)) < 1.0:
        optimizer.param_groups[0]["lr"] = 2e-3 * (1.0 - spent)
        chosen = torch.randint(len(clean), (BATCH,), generator=generator)
        top, left = torch.randint(SIZE - CROP + 1, (2,), generator=generator).tolist()
        target = clean[chosen, :, top : top + CROP, left : left + CROP]
        noisy = add_gaussian(target, mean=NOISE.mean, std=NOISE.std_range[0], clip=NOISE.clip, generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.l1_loss(model(noisy), target).backward()
        optimizer.step()
        steps += 1
    print(f"width {width}: trained for {steps} steps")
    save_weights(path, model, noise=NOISE)


if __name__ == "__main__":
    main()
