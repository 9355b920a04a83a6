"""What gradients cost on their way between two ranks over gloo on loopback, as fp32 and as bf16, and what a checkpoint
costs the training.

    python benchmarks/communication.py [--rounds 15] [--ranks 2] [--link 1] [--save]

Gradients: a network's worth of them, in buckets of 25 MiB as DistributedDataParallel hands them over, through torch's
all-reduce hook and through ours, taking turns in the same processes. Seconds: from a barrier until the slowest rank has
its mean. Bytes: those that the kernel counts on the loopback device between the two, TCP's headers included, over all
ranks; other traffic of the machine in that time would be counted too, so the least of the rounds is given. Loopback is
no network: what limits it is the processor, which sends as well as it sums. `--link` measures a second time on a
loopback device of its own that the kernel (tc's token bucket) holds to so many Gbit/s for each rank, as a network
would; it needs Linux and root.

Checkpoints: how long the training stands still for one, written in the background as `veilray train` does or on the
spot, with the state of the same networks; the writer has ended before the next one begins.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common import save, table
from ranks import run_ranks
from veilray.models.build import build_model
from veilray.models.config import ModelConfig
from veilray.parallel.compression import Bf16Average
from veilray.parallel.group import Group
from veilray.parallel.joining import joined
from veilray.training.config import RunConfig
from veilray.training.run import RunFolder
from veilray.training.state import TrainingState
from veilray.training.writer import CheckpointWriter

CLONE_NEWNET = 0x40000000
BUCKET = 25 * 2**20 // 4
MODELS = {"U-Net width 64": 64, "U-Net width 16": 16}
SIDES = ("fp32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--link", type=float, help="Gbit/s of an imitated network, for a second measurement")
    parser.add_argument("--width", type=int, help="one width only, to try it out")
    parser.add_argument("--save", action="store_true", help="write results/communication.json")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    models = {"U-Net": options.width} if options.width else MODELS
    if options.rank:
        torch.set_num_threads(1)
        _measure_rank([_parameters(width) for width in models.values()], options.rounds)
        return
    words = ["--rank", "--rounds", str(options.rounds), *(["--width", str(options.width)] if options.width else [])]
    all_reduce = {"loopback": _all_reduce(words, models, options.ranks)}
    checkpoint = {name: _checkpoints(width, rounds=max(3, options.rounds // 3)) for name, width in models.items()}
    if options.link:
        _limit_loopback(options.link * options.ranks)
        all_reduce[f"{options.link:g} Gbit/s"] = _all_reduce(words, models, options.ranks)
    print(f"all-reduce of gradients, {options.ranks} ranks of one thread")
    print(table(["over", "gradients of", "side", "ms", "MB sent"], list(_all_reduce_rows(all_reduce))))
    print("\ncheckpoint: milliseconds that the training waits for it")
    print(table(["state of", "on the spot", "in the background", "ratio"], list(_checkpoint_rows(checkpoint))))
    if options.save:
        facts = {"ranks": options.ranks, "threads_per_rank": 1, "bucket_bytes": 4 * BUCKET}
        save("communication", {**facts, "all_reduce": all_reduce, "checkpoint": checkpoint})


def _all_reduce(words: list[str], models: dict[str, int], ranks: int) -> dict[str, Any]:
    measured = run_ranks(__file__, words, ranks=ranks)
    return {
        name: {"parameters": _parameters(width), **_summary(rounds)}
        for (name, width), rounds in zip(models.items(), measured, strict=True)
    }


def _limit_loopback(gigabits: float) -> None:
    """Move this process and those it starts to a loopback device of their own, held to a rate."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        sys.exit(f"--link needs Linux and root: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    rate = ["rate", f"{round(1000 * gigabits)}mbit", "burst", "256kb", "latency", "100ms"]
    subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", "tbf", *rate], check=True)


def _measure_rank(sizes: list[int], rounds: int) -> None:
    measured = []
    with joined(torch.device("cpu"), timeout=300) as group:
        for size in sizes:
            buckets = torch.randn(size, generator=torch.Generator().manual_seed(group.rank)).split(BUCKET)
            average = Bf16Average(group)
            seen: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
            for _ in range(rounds + 2):
                for side in SIDES:
                    seen[side].append(_timed(side, buckets, average, group))
            measured.append({side: values[2:] for side, values in seen.items()})  # the first ones fault pages in
        if group.is_lead:
            print(json.dumps(measured))


def _timed(side: str, buckets: tuple[Tensor, ...], average: Bf16Average, group: Group) -> dict[str, float]:
    group.barrier()
    before, began = _loopback_bytes(), time.perf_counter()
    if side == "bf16":
        last = len(buckets) - 1
        futures = [average.add(bucket, index=index, last=index == last) for index, bucket in enumerate(buckets)]
        for future in futures:
            future.wait()
    else:
        for work in [dist.all_reduce(bucket.div_(group.world_size), async_op=True) for bucket in buckets]:
            work.wait()
    own = time.perf_counter() - began
    slowest = max(group.gather(own))
    return {"milliseconds": 1000 * slowest, "megabytes": (_loopback_bytes() - before) / 1e6}


def _loopback_bytes() -> int:
    """Bytes sent through the loopback device so far; 0 where the kernel does not tell."""
    table_of_devices = Path("/proc/net/dev")
    if not table_of_devices.is_file():
        return 0
    lines = table_of_devices.read_text().splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


def _summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for side, seen in rounds.items():
        milliseconds = [one["milliseconds"] for one in seen]
        record[side] = {
            "milliseconds": statistics.median(milliseconds),
            "least_milliseconds": min(milliseconds),
            "megabytes": min(one["megabytes"] for one in seen),
        }
    for figure in ("milliseconds", "least_milliseconds", "megabytes"):
        bf16 = record["bf16"][figure]
        record[f"ratio_of_{figure}"] = record["fp32"][figure] / bf16 if bf16 else None
    return record


def _parameters(width: int) -> int:
    return sum(parameter.numel() for parameter in build_model(ModelConfig(width=width)).parameters())


def _checkpoints(width: int, *, rounds: int) -> dict[str, float]:
    """Milliseconds for which a training waits for its checkpoint, medians."""
    config = RunConfig.model_validate({"model": {"width": width}})
    state = TrainingState(build_model(config.model), config.train, device=torch.device("cpu"), scale_loss=False)
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    seen: dict[str, list[float]] = {"on_the_spot": [], "in_the_background": []}
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder) / "run", config)
        with CheckpointWriter(run, noise=config.noise) as writer:
            for _ in range(rounds + 1):
                for side, waits in seen.items():
                    state.counters.step += 1
                    began = time.perf_counter()
                    writer.save(state, best=True)
                    if side == "on_the_spot":
                        writer.finish()
                    waits.append(1000 * (time.perf_counter() - began))
                    writer.finish()
    medians = {side: statistics.median(waits[1:]) for side, waits in seen.items()}
    return {**medians, "ratio": medians["on_the_spot"] / medians["in_the_background"]}


def _all_reduce_rows(record: dict[str, Any]) -> Any:
    for link, models in record.items():
        for name, one in models.items():
            label = f"{name}, {one['parameters'] / 1e6:.1f} M"
            for side in SIDES:
                figures = one[side]
                yield link, label, side, f"{figures['milliseconds']:.1f}", f"{figures['megabytes']:.1f}"
            times, sizes = one["ratio_of_milliseconds"], one["ratio_of_megabytes"]
            yield "", "", "fp32 / bf16", f"{times:.2f}x", f"{sizes:.2f}x" if sizes else "not counted"


def _checkpoint_rows(record: dict[str, Any]) -> Any:
    for name, one in record.items():
        yield name, f"{one['on_the_spot']:.0f}", f"{one['in_the_background']:.0f}", f"{one['ratio']:.1f}x"


if __name__ == "__main__":
    main()
