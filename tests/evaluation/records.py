"""Records of a benchmark as it leaves them, made up, for tests of what is computed from them."""

from __future__ import annotations

from typing import Any

from veilray.evaluation.benchmark.record import Arithmetic, RunRecord, Timings
from veilray.metrics.interval import Interval
from veilray.training.config import RunConfig

PLAIN = {
    "model": "unet",
    "noise": "0.2",
    "setup": "single",
    "precision": "fp32",
    "layout": "contiguous",
    "compile": "no",
    "prefetch": "0",
}


def make_record(
    *,
    seed: int = 1,
    seconds: float = 100.0,
    speed: float = 10.0,
    psnr: float = 30.0,
    epochs: int = 2,
    config: dict[str, Any] | None = None,
    status: str = "done",
    **levels: str,
) -> RunRecord:
    """A record of a run at the plain levels, but for those given."""
    chosen = PLAIN | levels
    kind, _, devices = chosen["setup"].partition(":")
    settings: dict[str, Any] = {
        "model": {"name": chosen["model"]},
        "noise": {"std": float(chosen["noise"])},
        "launch": {"setup": kind, "precision": chosen["precision"], "device": "cpu", "layout": chosen["layout"]},
    }
    for section, values in (config or {}).items():
        settings.setdefault(section, {}).update(values)
    done = status == "done"
    return RunRecord.model_validate(
        {
            "name": "_".join([*chosen.values(), str(seed)]).replace(":", ""),
            "levels": chosen,
            "seed": seed,
            "devices": int(devices or 1),
            "status": status,
            "reason": "" if done else "this machine has one GPU",
            "config": RunConfig.model_validate(settings).model_dump(mode="json"),
            "config_digest": "0" * 64,
            "cohort_digest": "c0ffee" * 10 + "abcd",
            "environment": {"device": "cpu", "device_name": "CPU, 2 threads"} if done else {},
            "figures": {"psnr": Interval(mean=psnr, low=psnr - 1, high=psnr + 1)} if done else {},
            "timings": Timings(
                seconds=seconds,
                epochs=epochs,
                process_seconds=seconds + 5,
                images_per_second=speed,
                parts={"forward": seconds / 2, "backward": seconds / 4},
                peak_memory_bytes=2**30,
            )
            if done
            else None,
            "arithmetic": Arithmetic(operations_per_image=1e9, peak_per_second=1e11, share_of_peak=speed / 100)
            if done
            else None,
            "recorded": "2026-01-01T00:00:00+00:00",
        }
    )
