"""What the last sitting of `default` bought, and what it invents: against its twins, which are the same but for it.

    veilray train benchmarks/models/default-plain.toml --data COHORT --out plain
    python benchmarks/inventions.py --data COHORT --before default-ninth --plain plain --lpips-backbone FILE [--save]

`before` is what the last sitting began from, trained on pixels alone; `plain` had the same sitting with L1 alone, where
`default` has a little of the perceptual loss beside it. Scores, unsupported structure and blobs are those of
frontier.py, of the test patients of splits/nih256.csv. --save writes results/inventions.json and the table of
docs/explanation/frontier.md; --pages writes the table from the record that is there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from common import RESULTS, save
from frontier import measured
from frontier_pages import write_inventions
from side_by_side import LEVELS, MEAN, SHIPPED
from veilray.evaluation.levels import at_noise
from veilray.evaluation.subject import open_subject
from veilray.inference.denoiser import Denoiser
from veilray.metrics.lpips import load_lpips
from veilray.obfuscation.config import NoiseConfig
from veilray.training.data import TrainingImages
from veilray.training.source import open_weights


def main() -> None:
    """Score all three at each level, print, and record where --save is given."""
    options = _options()
    if options.pages:
        _write_page()
        return
    lpips = load_lpips(options.lpips_backbone)
    networks = {"default": SHIPPED, "the same sitting, L1 alone": options.plain, "before it": options.before}
    levels: dict[str, Any] = {}
    for level in LEVELS:
        levels[level] = {}
        for name, source in networks.items():
            noise = NoiseConfig(mean=MEAN, std=float(level))
            images = TrainingImages.open(options.data, at_noise(open_subject(source).config, noise))
            denoiser = Denoiser.load(source, device="cpu")
            levels[level][name] = measured(f"{level}, {name}", denoiser, images, lpips, split=options.split)
    if options.save:
        facts = {"split": options.split, "mean": MEAN, "images": len(images.sets[options.split])}
        facts |= {"patients": images.patients()[options.split], "cohort_digest": images.data.digest}
        digests = {name: open_weights(source).sha256 for name, source in networks.items()}
        save("inventions", {**facts, "weights_sha256": digests, "levels": levels})
        _write_page()


def _write_page() -> None:
    write_inventions(json.loads((RESULTS / "inventions.json").read_text(encoding="utf-8")))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the cohort")
    parser.add_argument("--before", type=Path, help="run folder of the sitting before the last")
    parser.add_argument("--plain", type=Path, help="run folder of the last sitting with L1 alone")
    parser.add_argument("--lpips-backbone", type=Path)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--save", action="store_true", help="write results/inventions.json and the page")
    parser.add_argument("--pages", action="store_true", help="write the page from results/inventions.json")
    options = parser.parse_args()
    missing = [f"--{name}" for name in ("data", "before", "plain", "lpips_backbone") if not getattr(options, name)]
    if missing and not options.pages:
        parser.error(f"missing: {', '.join(missing).replace('_', '-')}")
    torch.set_num_threads(1)
    return options


if __name__ == "__main__":
    main()
