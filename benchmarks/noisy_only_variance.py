"""How noisy the gradient of each objective is that sees no clean image, at one network and on the same crops.

    python benchmarks/noisy_only_variance.py --data shared/data/nih256 [--steps 800] [--batches 60] [--save]
    python benchmarks/noisy_only_variance.py --pages

The wider network of noisy_only.py is trained for --steps supervised steps: neither at its start nor at its end.
Then every objective's gradient is taken on the same --batches batches of one clamped release, and its variance, summed
over all weights, is divided by that of the supervised gradient. Of the objectives with a probe the gradient is taken
twice a batch, with other signs on other images: half the squared difference is the probe's part of the variance. One
thread; training patients of splits/nih256.csv. --save writes results/noisy_only_variance.json and the table of
docs/explanation/training-without-clean-images.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines_pages import markdown, with_table
from common import RESULTS, save
from noisy_only_arms import BATCH, CROP, MEAN, WIDE
from veilray.images.read import read_radiograph
from veilray.models.build import DenoisingNetwork, build_model
from veilray.models.config import ModelConfig
from veilray.obfuscation.noise import add_gaussian
from veilray.training.config import PROBED, Objective
from veilray.training.draws import draw
from veilray.training.objectives.noisy_only import NoisyOnlyObjective

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "training-without-clean-images.md"
SPLIT = Path(__file__).parent / "splits" / "nih256.csv"
STD, IMAGES, RATE = 0.2, 120, 1.35e-2
SUPERVISED = "supervised"
OBJECTIVES: tuple[Objective, ...] = ("censored_sure", "censored_r2r", "blind_spot", "neighbor2neighbor")
PROBES = (1, 2, 4)
"""Values of train.probe_every, of the objectives that have it."""
STRENGTH = 0.5


@dataclass(frozen=True)
class Crops:
    """One batch: clean and noisy crops, (N, 1, H, W) each."""

    clean: Tensor
    noisy: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of nih256's PNG files")
    parser.add_argument("--steps", type=int, default=800, help="supervised steps before the measurement")
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--save", action="store_true", help="write the record in results/, and the page")
    parser.add_argument("--pages", action="store_true", help="write the page from the record")
    options = parser.parse_args()
    if not options.pages:
        if options.data is None:
            parser.error("--data is missing")
        torch.set_num_threads(1)
        found = measure(images(options.data), steps=options.steps, batches=options.batches)
        print(_table(found))
        if not options.save:
            return
        save("noisy_only_variance", found)
    record = json.loads((RESULTS / "noisy_only_variance.json").read_text(encoding="utf-8"))
    hardware = record["hardware"]
    text = f"{_table(record)}\n\n{hardware['device']}, {hardware['date']}."
    page = PAGE.read_text(encoding="utf-8")
    script = "noisy_only_variance.py"
    PAGE.write_text(with_table(page, "variance", text, PAGE, script=script), encoding="utf-8")


def images(folder: Path) -> Tensor:
    """Some images of training patients, (N, 1, 256, 256), [0, 1]."""
    with SPLIT.open(newline="", encoding="utf-8") as stream:
        names = sorted(row["image_id"] for row in csv.DictReader(stream) if row["split"] == "train")[:IMAGES]
    return torch.from_numpy(np.stack([read_radiograph(folder / f"{name}.png").pixels for name in names]))[:, None]


def measure(clean: Tensor, *, steps: int, batches: int) -> dict[str, Any]:
    """The variance of each objective's gradient, in that of the supervised one, and the probe's share of it."""
    torch.manual_seed(1)
    noise = torch.Generator().manual_seed(0)
    noisy = add_gaussian(clean, mean=MEAN, std=STD, generator=noise)
    noisy = (noisy * 255).round() / 255  # as a release has them
    model = build_model(ModelConfig.model_validate(WIDE))
    last = _train(model, _crops(clean, noisy, seed=2), steps=steps)
    cases: list[tuple[Objective, int]] = [
        (objective, every) for objective in OBJECTIVES for every in (PROBES if objective in PROBED else (1,))
    ]
    rows = {SUPERVISED: _spread(model, SUPERVISED, 1, _crops(clean, noisy, seed=3), batches)}
    for objective, every in cases:
        name = f"{objective}, probe_every {every}" if objective in PROBED else objective
        rows[name] = _spread(model, objective, every, _crops(clean, noisy, seed=3), batches)
    plain = rows[SUPERVISED]["variance"]
    for row in rows.values():
        row["ratio"] = row["variance"] / plain
    setting = {"network": WIDE, "batch": BATCH, "crop": CROP, "std": STD, "mean": MEAN, "strength": STRENGTH}
    return {**setting, "images": len(clean), "steps": steps, "loss": last, "batches": batches, "objectives": rows}


def _train(model: DenoisingNetwork, crops: Iterator[Crops], *, steps: int) -> float:
    """Supervised training by the squared error; the mean loss over the last tenth."""
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-4)
    losses = []
    for step in range(steps):
        rate = RATE * min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.param_groups[0]["lr"] = rate
        one = next(crops)
        loss = (model(one.noisy) - one.clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _crops(clean: Tensor, noisy: Tensor, *, seed: int) -> Iterator[Crops]:
    """Batches of crops of the same places of both, endlessly."""
    generator = np.random.default_rng(seed)
    while True:
        rows = generator.integers(len(clean), size=BATCH)
        corners = generator.integers(clean.shape[-1] - CROP + 1, size=(BATCH, 2))
        places = list(zip(rows.tolist(), corners.tolist(), strict=True))
        cut = [
            torch.stack([one[row, :, top : top + CROP, left : left + CROP] for row, (top, left) in places])
            for one in (clean, noisy)
        ]
        yield Crops(*cut)


def _spread(
    model: DenoisingNetwork, objective: Objective, every: int, crops: Iterator[Crops], batches: int
) -> dict[str, float]:
    """Variance of the gradient summed over the weights, and the part of it that is the probe's."""
    gradients, apart = [], []
    for number in range(batches):
        one = next(crops)
        gradients.append(_gradient(model, objective, every, one, number=2 * number))
        if objective in PROBED:
            other = _gradient(model, objective, every, one, number=2 * number + 1)
            apart.append(float((gradients[-1] - other).square().sum()) / 2)
    variance = float(torch.stack(gradients).var(dim=0).sum())
    return {"variance": variance, **({"probe_share": float(np.mean(apart)) / variance} if apart else {})}


def _gradient(model: DenoisingNetwork, objective: Objective, every: int, one: Crops, *, number: int) -> Tensor:
    """The gradient of the batch's mean loss in all weights, as one vector."""
    if objective == SUPERVISED:
        loss = (model(one.noisy) - one.clean).square().mean()
    else:
        weights = np.zeros(BATCH, dtype=np.float32)
        weights[number % every :: every] = every
        names = [f"{number}/{place}" for place in range(BATCH)]
        drawn = draw(objective, names, (CROP, CROP), weights=weights)
        wrapped = NoisyOnlyObjective(model, objective=objective, config=model.config, clip=True, recorruption=STRENGTH)
        loss = wrapped(one.noisy, torch.tensor([[MEAN, STD]]).expand(BATCH, -1), drawn).mean()
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    parts = zip(found, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in parts])


def _table(record: dict[str, Any]) -> str:
    rows = [
        [name, f"{one['ratio']:.2f}", f"{one['probe_share']:.0%}" if "probe_share" in one else ""]
        for name, one in record["objectives"].items()
    ]
    facts = (
        f"{record['batches']} batches of {record['batch']} crops of {record['crop']} x {record['crop']} pixels, noise "
        f"{record['std']} clamped, after {record['steps']} supervised steps (their last tenth ended at "
        f"{-10 * math.log10(record['loss']):.1f} dB). The last column is the part of the variance that is the probe's. "
        "Both are estimates from few batches, some of which weigh much. Objectives other than `censored_sure` have "
        "gradients of another scale, which is in their figures too."
    )
    return f"{facts}\n\n{markdown(['objective', 'variance of the gradient, of the supervised one', 'the probe'], rows)}"


if __name__ == "__main__":
    main()
