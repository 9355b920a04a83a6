"""What each network costs: parameters, multiply-adds, memory, how far a pixel sees; and, where asked, its speed.

    python benchmarks/networks.py [--time] [--threads 2] [--rounds 9] [--save]

Counted on images of 256 x 256 pixels without running anything: a multiply-add of a convolution or of a matrix product
counts as one, normalisation, activations and pooling as none, and TNRD's tables, about 50 of its own, as none either.
With --time, images go through the networks one by one, in float32 on the CPU, batch normalisation folded away; the
networks take turns, and the median over the rounds is shown. With --save the record is written, and the table in
docs/explanation/networks-and-objectives.md is drawn anew from it; without --time it keeps the seconds it has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from common import RESULTS, save, table
from veilray.evaluation.benchmark.workload import count_workload
from veilray.inference.engine import prepare
from veilray.models.build import build_model
from veilray.models.config import TITLES, ModelConfig

SIDE = 256
NETWORKS: dict[str, dict[str, Any]] = {
    "unet 64": {"name": "unet", "width": 64},
    "unetpp 64": {"name": "unetpp", "width": 64},
    "attention_unet 64": {"name": "attention_unet", "width": 64},
    "unet 16": {"name": "unet", "width": 16},
    "unetpp 16": {"name": "unetpp", "width": 16},
    "attention_unet 16": {"name": "attention_unet", "width": 16},
    "nafnet 32": {"name": "nafnet", "width": 32, "depth": 4, "residual": True},
    "nafnet 32, folded by 4": {"name": "nafnet", "width": 32, "depth": 4, "residual": True, "fold": 4},
    "restormer 24": {"name": "restormer", "width": 24, "depth": 4, "residual": True},
    "dncnn 64, 17 layers": {"name": "dncnn", "width": 64, "layers": 17},
    "dncnn 64, 20 layers": {"name": "dncnn", "width": 64, "layers": 20},
    "tnrd 48, 5 stages": {"name": "tnrd", "width": 48, "stages": 5},
}
PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "networks-and-objectives.md"
MARK = "<!-- drawn by benchmarks/networks.py -->"


def main() -> None:
    """Count, measure if asked, print a table, and with --save record it and draw it on its page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    record: dict[str, Any] = {"side": SIDE, "networks": {name: count(name) for name in NETWORKS}}
    if options.time:
        record |= {"threads": options.threads, "rounds": options.rounds}
        record["milliseconds"] = measure(threads=options.threads, rounds=options.rounds)
    else:
        record |= _measured_before()
    print(table(*rows(record)))
    if options.save:
        save("networks", record)
        draw(record)


def count(name: str) -> dict[str, Any]:
    """What is known of a network without running it."""
    config = ModelConfig.model_validate(NETWORKS[name])
    workload = count_workload(config, size=SIDE)
    with torch.device("meta"):
        model = build_model(config)
    return {
        "title": TITLES[config.name] + name.removeprefix(config.name),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": (workload.flop_per_image - workload.backward_flop) / 2,
        "activation_bytes": workload.activation_bytes,
        "receptive_radius": model.receptive_radius,
        "whole_image": model.has_global_statistics,
    }


def measure(*, threads: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of an image through each network."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    cpu, image = torch.device("cpu"), torch.rand(1, 1, SIDE, SIDE)
    built = {name: build_model(ModelConfig.model_validate(fields)) for name, fields in NETWORKS.items()}
    networks = {name: prepare(model, device=cpu, dtype=torch.float32) for name, model in built.items()}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, network in networks.items():
                started = time.perf_counter()
                network(image)
                if number:  # the first round sets the library up
                    seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(taken) for name, taken in seconds.items()}


def rows(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table."""
    header = ["network", "parameters", "GMAC", "activations, MiB", "radius, px"]
    timed = record.get("milliseconds")
    lines = []
    for name, found in record["networks"].items():
        radius = f"{found['receptive_radius']}" + (", and the image" if found["whole_image"] else "")
        line = [found["title"], f"{found['parameters']:,}", f"{found['multiply_adds'] / 1e9:.2f}"]
        line += [f"{found['activation_bytes'] / 2**20:.0f}", radius]
        lines.append([*line, *([f"{timed[name]:.0f}"] if timed else [])])
    return [*header, *([f"ms on {record['threads']} threads"] if timed else [])], lines


def draw(record: dict[str, Any]) -> None:
    """Put the table on its page, between its marks."""
    header, lines = rows(record)
    drawn = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines)]
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
    PAGE.write_text(MARK.join([before, "\n" + "\n".join(drawn) + "\n", after]), encoding="utf-8")
    print(f"written: {PAGE}")


def _measured_before() -> dict[str, Any]:
    path = RESULTS / "networks.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = {key: before[key] for key in ("threads", "rounds", "milliseconds") if key in before}
    return kept if kept.get("milliseconds", {}).keys() == NETWORKS.keys() else {}


if __name__ == "__main__":
    main()
