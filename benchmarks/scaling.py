"""How far data-parallel training scales: points measured on this CPU, a model fitted to them, and what it predicts.

    python benchmarks/scaling.py [--rounds 3] [--steps 6] [--quick] [--save] [--from-record]

Measured: training steps of U-Net and U-Net++ of several widths and batches, on one rank and on two over gloo and
loopback, with large and with small buckets, and bare all-reduces. The widths in HELD_OUT are kept from the fit;
loopback between two processes tests the fit, not a cluster's network. Then the model is carried to 8, 64 and 512 GPUs:
with the step time that gpu.py measured where results/ has one, else with an assumed one, and with the bandwidths that
makers state. --save writes results/scaling.json, docs/images/scaling.svg and the tables of docs/explanation/scaling.md;
--from-record makes the latter two anew from the record, with new predictions where results/ has a new GPU's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from common import RESULTS, save, table
from gpu_throughput import training_step
from ranks import run_ranks
from scaling_pages import predictions, write_pages
from veilray.evaluation.benchmark.workload import count_workload
from veilray.evaluation.scaling.fit import Measured, MeasuredExchange, MeasuredStep, fit_scaling, leave_out_errors
from veilray.evaluation.scaling.model import Plan
from veilray.parallel.group import Group
from veilray.parallel.joining import joined
from veilray.training.config import RunConfig
from veilray.training.setup import Setup

SIZE = 64
HELD_OUT = (24,)
MESSAGES = (4_096, 65_536, 1_048_576, 8_388_608, 33_554_432)
WARM_UP = 2
RESAMPLES = 100


@dataclass(frozen=True)
class Case:
    """One kind of training step."""

    model: str
    width: int
    batch: int
    bucket_mb: float = 25.0


def cases(*, quick: bool) -> list[Case]:
    """Every kind of step that is measured."""
    widths, batches = ((4, 8, 24), (1, 2)) if quick else ((8, 16, 24, 32), (1, 4))
    return [
        Case(model, width, batch, bucket)
        for model in ("unet", "unetpp")
        for width in widths
        for batch in batches
        for bucket in (25.0, 2.0)
        if width >= 16 or bucket == 25.0  # smaller networks fit into one bucket anyway
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="few small points, to try the script itself")
    parser.add_argument("--save", action="store_true", help="write results/scaling.json and the page's figures")
    parser.add_argument("--from-record", action="store_true", help="write the page's figures from results/scaling.json")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        print(json.dumps(_measure(options)))
        return
    if options.from_record:
        record = json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))
        record["predictions"] = predictions()
        (RESULTS / "scaling.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        write_pages(record)
        return
    record = _record(options)
    print(table(["parameter", "value", "90 % interval", "unit"], _parameter_rows(record)))
    print(f"straggling, measured: {record['straggling']:.3f}")
    for name, errors in record["errors"].items():
        print(f"{name}: median {100 * errors['median']:.0f} %, worst {100 * errors['worst']:.0f} %")
    if options.save:
        save("scaling", record)
        write_pages(json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8")))


def _record(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, fit, check and predict."""
    rounds: list[dict[str, Any]] = []
    words = ["--rank", "--steps", str(options.steps), *(["--quick"] if options.quick else [])]
    for _ in range(options.rounds):
        rounds += [run_ranks(__file__, words, ranks=ranks) for ranks in (1, 2)]
    points = list(_points(rounds))
    straggling = statistics.median(spread for one in rounds if one["ranks"] == 1 for spread in one["spreads"].values())
    seen = [point for name, point in points if not _held_out(name)]
    unseen = [point for name, point in points if _held_out(name)]
    fit = fit_scaling(seen, straggling=straggling, resamples=RESAMPLES, seed=0)
    left_out = leave_out_errors(seen, straggling=straggling, group=_network)
    errors = {
        "points of the fit": fit.errors,
        "networks left out of the fit in turn": [error for one in left_out.values() for error in one],
        f"width {HELD_OUT[0]}, never in the fit": [fit.predict(point) / point.seconds - 1.0 for point in unseen],
    }
    return {
        "rounds": rounds,
        "straggling": straggling,
        "parameters": {name: asdict(estimate) for name, estimate in fit.estimates.items()},
        "errors": {
            name: {"median": statistics.median(map(abs, found)), "worst": max(map(abs, found)), "points": len(found)}
            for name, found in errors.items()
        },
        "points": [
            {"name": name, "ranks": point.ranks, "measured_s": point.seconds, "fitted_s": fit.predict(point)}
            for name, point in points
        ],
        "predictions": predictions(),
    }


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """On a rank: median seconds of every case, their relative spread, and of every message."""
    seconds, spreads = {}, {}
    with joined(torch.device("cpu"), timeout=300.0) as group:
        setup = Setup("ddp", group) if group.world_size > 1 else Setup()
        for case in cases(quick=options.quick):
            if group.world_size == 1 and case.bucket_mb != 25.0:
                continue
            step = training_step(_config(case), setup, torch.device("cpu"), batch=case.batch, size=SIZE)
            times = _times(step, options.steps)
            name = json.dumps(asdict(case))
            seconds[name] = statistics.median(times)
            deviation = statistics.median(abs(one - seconds[name]) for one in times)
            spreads[name] = 1.4826 * deviation / seconds[name]  # of a normal distribution, its standard deviation
        exchanges = {size: _exchange_s(size, group, options.steps) for size in MESSAGES if group.world_size > 1}
    return {"ranks": group.world_size, "steps_s": seconds, "spreads": spreads, "exchanges_s": exchanges}


def _times(step: Any, count: int) -> list[float]:
    times = []
    for number in range(WARM_UP + count):
        began = time.perf_counter()
        step()
        if number >= WARM_UP:
            times.append(time.perf_counter() - began)
    return times


def _exchange_s(size: int, group: Group, count: int) -> float:
    tensor = torch.zeros(size // 4)
    return statistics.median(_times(lambda: group.sum_(tensor), 3 * count))


def _config(case: Case) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"name": case.model, "width": case.width, "norm": "group", "residual": True},
            "train": {"batch_size": 2 * case.batch, "optimizer": "adamw", "weight_decay": 1e-4},
            "launch": {"precision": "fp32", "layout": "contiguous", "bucket_mb": case.bucket_mb},
        }
    )


def _points(rounds: list[dict[str, Any]]) -> Iterator[tuple[str, Measured]]:
    """Every case on one rank and on two, and every message: the median over the rounds."""
    for ranks in (1, 2):
        measured = [one for one in rounds if one["ranks"] == ranks]
        for name in measured[0]["steps_s"]:
            case = Case(**json.loads(name))
            workload = count_workload(_config(case).model, size=SIZE)
            plan = Plan(batch_per_rank=case.batch, bucket_bytes=case.bucket_mb * 2**20)
            seconds = statistics.median(one["steps_s"][name] for one in measured)
            yield name, MeasuredStep(workload=workload, plan=plan, ranks=ranks, seconds=seconds)
        for size in measured[0]["exchanges_s"]:
            seconds = statistics.median(one["exchanges_s"][size] for one in measured)
            yield f"{size} bytes", MeasuredExchange(message_bytes=float(size), ranks=ranks, seconds=seconds)


def _network(point: Measured) -> str | None:
    return point.workload.name if isinstance(point, MeasuredStep) else None


def _held_out(name: str) -> bool:
    return name.startswith("{") and json.loads(name)["width"] in HELD_OUT


def _parameter_rows(record: dict[str, Any]) -> list[list[str]]:
    return [
        [name, f"{one['value']:.3g}", f"{one['low']:.3g} to {one['high']:.3g}", one["unit"]]
        for name, one in record["parameters"].items()
    ]


if __name__ == "__main__":
    main()
