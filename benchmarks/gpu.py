"""Everything that is to be known of one GPU, in under eight minutes, into one JSON file.

    python benchmarks/gpu.py [--minutes 7.5] [--data COHORT] [--lpips-backbone FILE] [--out DIR]
    python benchmarks/gpu.py --device cpu --quick        # tries the script itself, on tiny networks

Sections: `throughput` (images a second, milliseconds a step, share of the peak that a matrix product reaches, memory;
U-Net and U-Net++ of width 64 at 256 pixels in every arithmetic and memory format, against the released style),
`paper_epoch` (an epoch of the paper's 7,499 + 4,949 images, from which 50 are projected), `two_ranks` (two ranks over
gloo that share the device: equal gradients), `training` (a whole training in the time that is left, scored on its test
images). Each runs in a process of its own, for a share of the time; the file is written after each figure, so that
whatever ends the script leaves what was measured. From a source tree: PYTHONPATH=src. Needs torch 2.11 or newer,
numpy, scipy, pydantic, tomlkit, safetensors, torchmetrics, pillow; no DICOM or web package.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gpu_record import QUICK, Record, Scope, hardware

RESULTS = Path(__file__).parent / "results"
SHARES = {"throughput": 0.45, "paper_epoch": 0.30, "two_ranks": 0.12, "training": 1.0}
"""Share of all the time that a section may take at most; the last takes what is left."""


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu: torch finds no CUDA device here; --device cpu --quick tries the script itself")
    scope = QUICK if options.quick else Scope()
    if options.section:
        _run_section(options, scope, device)
        return
    record = Record(_path(options, device))
    record.path.unlink(missing_ok=True)
    record.put(hardware(device), "hardware")
    record.put("quick: tiny networks, no figure of it says anything" if options.quick else "full", "scope")
    record.put("untested: one device was used", "nccl_over_several_gpus")
    deadline = time.monotonic() + 60 * options.minutes
    for section, share in SHARES.items():
        limit = min(share * 60 * options.minutes, deadline - time.monotonic())
        _supervise(section, record, limit, options)
    print(summary(record.read()))
    print(f"written: {record.path}")


def _supervise(section: str, record: Record, limit: float, options: argparse.Namespace) -> None:
    """Run a section in a process of its own, for at most `limit` seconds, and note how it ended."""
    print(f"== {section}, up to {limit:.0f} s", flush=True)
    if limit < 1:
        record.put({"status": "left out", "reason": "no time was left"}, "sections", section)
        return
    began = time.monotonic()
    command = [sys.executable, __file__, "--section", section, "--limit", f"{limit:.1f}", *_passed_on(options, record)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=limit)
        lines = errors.strip().splitlines() or [""]
        failed = {"status": "failed", "reason": lines[-1][:300], "errors": [line[:300] for line in lines[-40:]]}
        ended = {"status": "done"} if process.returncode == 0 else failed
    except subprocess.TimeoutExpired:
        ended = {"status": "cut off", "reason": f"its {limit:.0f} s were over; what it had measured stands"}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the ranks that it started
            process.communicate()
    record.put({**ended, "seconds": time.monotonic() - began}, "sections", section)


def _run_section(options: argparse.Namespace, scope: Scope, device: torch.device) -> None:
    began = time.monotonic()
    record = Record(options.record)
    match options.section:
        case "throughput":
            from gpu_throughput import measure

            measure(record, scope, device)
        case "paper_epoch":
            from gpu_training import paper_epoch

            paper_epoch(record, scope, device)
        case "two_ranks":
            from gpu_ranks import measure as measure_ranks

            measure_ranks(record, scope, device, arguments=_passed_on(options, record))
        case "rank":
            from gpu_ranks import rank

            rank(record, scope, device)
        case "training":
            from gpu_training import Material, full_training

            material = Material(data=options.data, lpips_backbone=options.lpips_backbone)
            left = options.limit - (time.monotonic() - began) - 15.0  # imports, and the scoring's end
            full_training(record, scope, device, material=material, seconds=left)


def summary(record: dict[str, Any]) -> str:
    """What was measured, as lines; what was not, with its reason."""
    lines = [f"scope: {record['scope']}"]
    for model, ways in record.get("throughput", {}).items():
        for way, found in ways.items():
            if found["status"] == "measured":
                said = (
                    f"{found['images_per_s']:.0f} images/s, {found['ms_per_step']:.1f} ms/step, "
                    f"{100 * found['share_of_peak']:.0f} % of the measured peak"
                )
            else:
                said = f"not measured: {found['reason']}"
            lines.append(f"{model}, {way}: {said}")
    for name, found in record.get("paper_epoch", {}).items():
        if found["status"] == "measured":
            lines.append(
                f"{name}: one epoch of the paper's size {found['epoch_s']:.1f} s; 50 epochs, projected from it and "
                f"not measured: {found['projected_50_epochs_s']:.0f} s"
            )
        else:
            lines.append(f"{name}: not measured: {found['reason']}")
    ranks = record.get("two_ranks", {})
    lines += [
        f"two ranks, {name}: relative L2 {one['relative_l2']:.2g}" for name, one in ranks.get("gradients", {}).items()
    ]
    lines += [f"{name}: {rate:.0f} images/s" for name, rate in ranks.get("images_per_s", {}).items()]
    if run := record.get("training", {}).get("run"):
        lines.append(f"training: {run['epochs']} epochs in {run['seconds']:.0f} s, {record['training']['images_from']}")
    for section, ended in record["sections"].items():
        if ended["status"] != "done":
            lines.append(f"{section}: {ended['status']}: {ended['reason']}")
    return "\n".join(lines)


def _path(options: argparse.Namespace, device: torch.device) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", hardware(device)["device"].lower()).strip("-")
    return options.out / (f"gpu-{name}.json" if not options.quick else "gpu-quick.json")


def _passed_on(options: argparse.Namespace, record: Record) -> list[str]:
    words = ["--device", options.device, "--record", str(record.path)]
    words += ["--quick"] if options.quick else []
    words += ["--data", str(options.data)] if options.data else []
    return words + (["--lpips-backbone", str(options.lpips_backbone)] if options.lpips_backbone else [])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the script itself")
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything; the training takes what is left")
    parser.add_argument("--data", type=Path, help="cohort for the training run; phantoms where left out")
    parser.add_argument("--lpips-backbone", type=Path, help="AlexNet's convolutions, for LPIPS of the training run")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", RESULTS)), help="folder for the JSON")
    parser.add_argument("--section", choices=[*SHARES, "rank"], help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=60.0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
