"""What scaling.py predicts, and the figure and tables that docs/explanation/scaling.md shows of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import RESULTS
from veilray.evaluation.benchmark.workload import Workload, count_workload
from veilray.evaluation.scaling.interconnects import (
    BETWEEN_HOSTS,
    NVLINK,
    PEAK_SOURCE,
    Range,
    StepOfOneDevice,
    assumed_step,
    measured_step,
    predict,
    smallest_batch,
)
from veilray.evaluation.scaling.model import Plan
from veilray.models.config import ModelConfig

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "explanation" / "scaling.md"
FIGURE = DOCS / "images" / "scaling.svg"
MODELS = ("unet", "unetpp")
GPUS = (8, 64, 512)
IMAGES = 112_120
PLAN = Plan(batch_per_rank=32)
SHARE = 0.9
OPTIONS = {
    "as it comes": PLAN,
    "bf16 compression": replace(PLAN, compression=0.5),
    "4 passes to an exchange": replace(PLAN, accumulation=4),
    "group normalisation": replace(PLAN, synchronised=False),
    "buckets of 5 MiB": replace(PLAN, bucket_bytes=5 * 2**20),
    "buckets of 100 MiB": replace(PLAN, bucket_bytes=100 * 2**20),
}
WAY = "bf16 channels-last"


def predictions() -> dict[str, Any]:
    """For each network: its counts, its step on one device, and what follows on clusters."""
    found: dict[str, Any] = {"images": IMAGES, "batch_per_gpu": PLAN.batch_per_rank, "networks": {}}
    found["sources"] = {link.name: link.source for link in (NVLINK, *BETWEEN_HOSTS)} | {"peak": PEAK_SOURCE}
    for model in MODELS:
        workload = count_workload(ModelConfig.model_validate({"name": model, "width": 64}), size=256)
        step, origin = step_of_one(model, workload)
        found["networks"][workload.name] = {
            "workload": {**asdict(workload), "bytes_per_flop": workload.bytes_per_flop},
            "step_measured": step.measured,
            "step_from": origin,
            "image_ms": asdict(Range(*(1000 * value for value in asdict(step.image_s).values()))),
            "links": {link.name: _on_link(workload, step, link) for link in BETWEEN_HOSTS},
        }
    return found


def _on_link(workload: Workload, step: StepOfOneDevice, link: Any) -> dict[str, Any]:
    clusters = [asdict(predict(workload, step, link, PLAN, ranks=gpus, images=IMAGES)) for gpus in GPUS]
    batches = {
        name: smallest_batch(workload, step, link, plan, ranks=64, share=SHARE) for name, plan in OPTIONS.items()
    }
    return {"clusters": clusters, "smallest_batch_for_90_percent_on_64": batches}


def step_of_one(model: str, workload: Workload) -> tuple[StepOfOneDevice, str]:
    """The step of one GPU as gpu.py measured it last, else the assumed one; and where it is from."""
    records = {path: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("gpu-*.json")}
    for path, record in sorted(records.items(), key=lambda one: one[1]["hardware"]["date"], reverse=True):
        found = record.get("throughput", {}).get(model, {}).get(WAY, {})
        if record.get("scope") == "full" and found.get("status") == "measured":
            low, high = found["ms_per_step_10_90_percent"]
            spread = max(0.02, (high - low) / 2 / found["ms_per_step"])
            seconds, in_training = found["ms_per_step"] / 1000, _in_training(record)
            step = measured_step(seconds=seconds, batch=found["batch"], spread=spread, in_training=in_training)
            return step, f"measured on one {record['hardware']['device']} ({path.name}, {WAY})"
    return assumed_step(workload), f"assumed, not measured: 20 to 50 % of 989 TFLOP/s ({PEAK_SOURCE})"


def _in_training(record: dict[str, Any]) -> float:
    """How many times as long a U-Net image took in the epoch of the paper's size as in a step by itself; 1 if unknown.

    There images are loaded and noise is drawn, and there are 16 of them a step.
    """
    epoch, alone = record.get("paper_epoch", {}).get("unet eager", {}), record["throughput"]["unet"][WAY]
    if epoch.get("status") != "measured" or alone.get("status") != "measured":
        return 1.0
    seconds = sum(epoch["parts_s"][part] for part in ("data", "forward", "backward", "update"))
    return float(seconds / epoch["images"]["train"] / (alone["ms_per_step"] / 1000 / alone["batch"]))


def write_pages(record: dict[str, Any]) -> None:
    """Write the figure, and the tables into the page between their marks."""
    _draw(record["predictions"])
    page = PAGE.read_text(encoding="utf-8")
    tables = _prediction_tables(record["predictions"])
    if "parameters" in record:
        tables["fit"] = _fit_table(record)
    for name, text in tables.items():
        page = _with_table(page, name, text)
    PAGE.write_text(page, encoding="utf-8")
    print(f"written: {PAGE}, {FIGURE}")


def _with_table(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}: made by benchmarks/scaling.py -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{PAGE} has no place for the table {name}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def _fit_table(record: dict[str, Any]) -> str:
    rows = [
        [name, f"{one['value']:.3g} {one['unit']}", f"{one['low']:.3g} to {one['high']:.3g}"]
        for name, one in record["parameters"].items()
    ]
    errors = [
        [name, str(one["points"]), f"{100 * one['median']:.0f} %", f"{100 * one['worst']:.0f} %"]
        for name, one in record["errors"].items()
    ]
    return "\n\n".join(
        [
            f"Measured on {record['hardware']['device']}, one thread a rank, {record['hardware']['date']}:",
            _markdown(["parameter", "fitted", "90 % interval"], rows),
            _markdown(["error of the predicted step", "points", "median", "worst"], errors),
        ]
    )


def _prediction_tables(found: dict[str, Any]) -> dict[str, str]:
    counts, clusters, batches, steps = [], [], [], []
    for name, network in found["networks"].items():
        counted = network["workload"]
        counts.append(
            [
                name,
                f"{counted['gradient_bytes'] / 1e6:.0f} MB",
                f"{counted['flop_per_image'] / 1e9:.0f} GFLOP",
                f"{1e6 * counted['bytes_per_flop']:.0f} bytes",
            ]
        )
        steps.append(f"{name}: {network['step_from']}, {_range(network['image_ms'], '{:.2f}', digits=3)} ms an image.")
        for link, on_link in network["links"].items():
            for cluster in on_link["clusters"]:
                if cluster["ranks"] == GPUS[0] and link != BETWEEN_HOSTS[0].name:
                    continue  # one host: nothing is between hosts
                where = "one host, NVLink" if cluster["ranks"] == GPUS[0] else link
                clusters.append(
                    [
                        *(name, where, str(cluster["ranks"])),
                        _range(cluster["efficiency"], "{:.0%}", reverse=True),
                        _range(cluster["images_per_s"], "{:,.0f}", reverse=True),
                        _range(cluster["epoch_s"], "{:.2g}"),
                    ]
                )
            wanted = on_link["smallest_batch_for_90_percent_on_64"]
            batches.append([name, link, *(_batch(wanted[option]) for option in OPTIONS)])
    header = ["network", "between hosts", "GPUs", "efficiency", "images/s", f"seconds for {IMAGES:,} images"]
    return {
        "counts": _markdown(["network", "gradients", "work on an image", "gradient bytes a MFLOP"], counts),
        "steps": "\n".join(f"- {step}" for step in steps),
        "predicted": _markdown(header, clusters),
        "batches": _markdown(["network", "between hosts", *OPTIONS], batches),
    }


def _batch(found: list[int | None]) -> str:
    middle, worst = ("> 4,096" if value is None else f"{value:,}" for value in found)
    return f"{middle} (worst {worst})"


def _range(found: dict[str, float], form: str, *, digits: int = 2, reverse: bool = False) -> str:
    """Middle and ends, with no more digits than a prediction deserves."""
    middle, low, high = (form.format(float(f"{found[end]:.{digits}g}")) for end in ("middle", "best", "worst"))
    return f"{middle} ({high} to {low})" if reverse else f"{middle} ({low} to {high})"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _draw(found: dict[str, Any]) -> None:
    """Efficiency against the images a GPU sees at a time, on 64 GPUs, for a fast and for a slow link."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "scaling", "font.size": 9})
    from matplotlib import pyplot as plt

    batches = [2**power for power in range(10)]
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), sharey=True, layout="constrained")
    colours = dict(zip(MODELS, ("#1f6f8b", "#c8553d"), strict=True))
    for axis, link in zip(axes, (BETWEEN_HOSTS[0], BETWEEN_HOSTS[-1]), strict=True):
        for model in MODELS:
            workload = count_workload(ModelConfig.model_validate({"name": model, "width": 64}), size=256)
            step, _ = step_of_one(model, workload)
            for name, style in (("as it comes", "-"), ("bf16 compression", "--")):
                ranges = [
                    predict(
                        *(workload, step, link, replace(OPTIONS[name], batch_per_rank=batch)), ranks=64, images=1
                    ).efficiency
                    for batch in batches
                ]
                label = workload.name + ("" if style == "-" else ", bf16 compression")
                axis.plot(batches, [one.middle for one in ranges], style, color=colours[model], label=label)
                if style == "-":
                    low, high = [one.worst for one in ranges], [one.best for one in ranges]
                    axis.fill_between(batches, low, high, color=colours[model], alpha=0.15, linewidth=0)
        axis.axhline(SHARE, color="#888888", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.set_title(f"64 GPUs, {link.name} between 8 hosts: predicted")
        axis.set_xlabel("images a GPU and pass")
    axes[0].set_ylabel("images a second and GPU,\nshare of one GPU alone")
    axes[0].set_ylim(0, 1.02)
    axes[0].legend(fontsize=8, loc="lower right")
    measured = all(network["step_measured"] for network in found["networks"].values())
    figure.supxlabel(
        "Bands: from the worst to the best case. Step of one GPU "
        + ("measured." if measured else "assumed, not measured."),
        fontsize=8,
    )
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})
    plt.close(figure)
