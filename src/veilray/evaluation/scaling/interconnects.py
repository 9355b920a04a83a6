"""Machines for the scaling model to be carried to: bandwidths that their makers state, and ranges for what they don't.

Nothing here is measured. A maker states the rate of a link; what software reaches of it, the latency of a message, how
much of the exchange hides behind the backward pass and how far ranks vary are ranges, assumed and said to be so.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from veilray.evaluation.benchmark.workload import Workload
from veilray.evaluation.scaling.model import Device, Link, Network, Plan, efficiency, epoch_s, images_per_s, step_time

End = Literal["best", "middle", "worst"]
GIGABIT = 1e9 / 8
"""Bytes in a gigabit."""
GPUS_PER_HOST = 8

PEAK_BF16 = 989e12
PEAK_SOURCE = "NVIDIA H200 datasheet, SXM: 1,979 TFLOP/s in bf16 with sparsity, so 989 without"
"""Arithmetic of the device to which the model is carried where no step was measured, operations a second."""


@dataclass(frozen=True)
class Range:
    """What is not known exactly, from the end that is good for speed to the end that is bad for it."""

    best: float
    middle: float
    worst: float


ASSUMED_SHARE_OF_PEAK = Range(best=0.5, middle=0.35, worst=0.2)
"""Assumed, not measured: share of the peak that a training step reaches."""
ASSUMED_OVERHEAD = Range(best=0.5e-3, middle=2e-3, worst=5e-3)
"""Assumed, not measured: seconds of a step that do not depend on its batch."""
ASSUMED_REACHED = Range(best=0.9, middle=0.7, worst=0.5)
"""Assumed: share of a link's stated rate that an all-reduce reaches."""
ASSUMED_OVERLAP = Range(best=1.0, middle=0.75, worst=0.5)
"""Assumed: share of the backward pass behind which gradients are exchanged."""
ASSUMED_STRAGGLING = Range(best=0.005, middle=0.01, worst=0.03)
"""Assumed: standard deviation of a rank's step time, as a share."""


@dataclass(frozen=True, kw_only=True)
class Interconnect:
    """A kind of link as its maker states it."""

    name: str
    bytes_per_s: float
    """Stated rate in one direction."""
    links_per_host: int
    latency_s: Range
    """Assumed: seconds a message takes before its first byte, software included."""
    source: str


NVLINK = Interconnect(
    name="NVLink 4",
    bytes_per_s=450e9,
    links_per_host=GPUS_PER_HOST,
    latency_s=Range(best=1e-6, middle=3e-6, worst=8e-6),
    source="NVIDIA H200 datasheet: 900 GB/s a GPU, both directions together",
)
BETWEEN_HOSTS = (
    Interconnect(
        name="InfiniBand NDR",
        bytes_per_s=400 * GIGABIT,
        links_per_host=GPUS_PER_HOST,
        latency_s=Range(best=2e-6, middle=6e-6, worst=20e-6),
        source="NVIDIA ConnectX-7 user manual: NDR, 400 Gb/s a port; DGX H100 user guide: one port a GPU",
    ),
    Interconnect(
        name="InfiniBand HDR",
        bytes_per_s=200 * GIGABIT,
        links_per_host=GPUS_PER_HOST,
        latency_s=Range(best=2e-6, middle=6e-6, worst=20e-6),
        source="NVIDIA ConnectX-6 user manual: HDR, 200 Gb/s a port; one port a GPU is an assumption",
    ),
    Interconnect(
        name="100 GbE",
        bytes_per_s=100 * GIGABIT,
        links_per_host=1,
        latency_s=Range(best=10e-6, middle=25e-6, worst=60e-6),
        source="IEEE 802.3: 100 Gb/s; one port a host is an assumption",
    ),
    Interconnect(
        name="25 GbE",
        bytes_per_s=25 * GIGABIT,
        links_per_host=1,
        latency_s=Range(best=10e-6, middle=25e-6, worst=60e-6),
        source="IEEE 802.3: 25 Gb/s; one port a host is an assumption",
    ),
)


@dataclass(frozen=True, kw_only=True)
class StepOfOneDevice:
    """What one device needs for a step of a network: overhead + batch x image, in seconds."""

    overhead_s: Range
    image_s: Range
    measured: bool
    """False where it follows from an assumed share of a stated peak."""


def assumed_step(workload: Workload) -> StepOfOneDevice:
    """The step of a device of `PEAK_BF16` under the assumed share of its peak: assumed, not measured."""
    shares = ASSUMED_SHARE_OF_PEAK
    image = Range(
        *(workload.flop_per_image / (PEAK_BF16 * share) for share in (shares.best, shares.middle, shares.worst))
    )
    return StepOfOneDevice(overhead_s=ASSUMED_OVERHEAD, image_s=image, measured=False)


def measured_step(*, seconds: float, batch: int, spread: float, in_training: float = 1.0) -> StepOfOneDevice:
    """A step of `batch` images that took `seconds` on a real device, give or take `spread`, a share of it.

    `in_training`: how many times as long an image took there in a whole training, 1 or more; it bounds the slow end.
    """
    slow = max(1.0 + spread, in_training)
    image = Range(*(seconds * factor / batch for factor in (1.0 - spread, 1.0, slow)))
    return StepOfOneDevice(overhead_s=Range(best=0.0, middle=0.0, worst=0.0), image_s=image, measured=True)


def device_of(workload: Workload, step: StepOfOneDevice, *, speed: End, straggling: End) -> Device:
    """The device at an end of its ranges: `speed` and `straggling` are best, middle or worst."""
    return Device(
        overhead_s=getattr(step.overhead_s, speed),
        flop_per_s=workload.flop_per_image / getattr(step.image_s, speed),
        straggling=getattr(ASSUMED_STRAGGLING, straggling),
    )


def network_of(between: Interconnect, *, quality: End) -> Network:
    """Hosts of 8 GPUs joined by NVLink inside and by `between` outside, at an end of the ranges."""
    inside, outside = (
        Link(
            latency_s=getattr(kind.latency_s, quality),
            bytes_per_s=kind.bytes_per_s * getattr(ASSUMED_REACHED, quality),
        )
        for kind in (NVLINK, between)
    )
    return Network(
        ranks_per_host=GPUS_PER_HOST,
        local=inside,
        between=outside,
        links_per_host=between.links_per_host,
        overlap=getattr(ASSUMED_OVERLAP, quality),
    )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of a cluster: never measured, always a range."""

    ranks: int
    step_s: Range
    efficiency: Range
    """Images a second and device, as a share of one device alone."""
    images_per_s: Range
    epoch_s: Range


def predict(
    workload: Workload, step: StepOfOneDevice, between: Interconnect, plan: Plan, *, ranks: int, images: int
) -> Prediction:
    """Carry the model to `ranks` GPUs in hosts of 8, and to an epoch of `images` training images.

    Times go from all that is good for speed to all that is bad for it. Efficiency is best where a slow device meets a
    fast network, and worst where a fast device waits for a slow one.
    """

    def at(figure: Callable[..., float], *, swapped: bool = False, **more: int) -> Range:
        ends: tuple[tuple[End, End], ...] = (("best", "best"), ("middle", "middle"), ("worst", "worst"))
        if swapped:
            ends = (("worst", "best"), ("middle", "middle"), ("best", "worst"))
        values = []
        for speed, quality in ends:
            device = device_of(workload, step, speed=speed, straggling=quality)
            values.append(figure(workload, device, network_of(between, quality=quality), plan, ranks=ranks, **more))
        return Range(*values)

    return Prediction(
        ranks=ranks,
        step_s=at(lambda *machine, ranks: step_time(*machine, ranks=ranks).total_s),
        efficiency=at(efficiency, swapped=True),
        images_per_s=at(images_per_s),
        epoch_s=at(epoch_s, images=images),
    )


def smallest_batch(
    workload: Workload, step: StepOfOneDevice, between: Interconnect, plan: Plan, *, ranks: int, share: float
) -> tuple[int | None, int | None]:
    """Images a device and pass below which efficiency falls short of `share`: in the middle case, and in the worst.

    None where more than 4,096 would be needed.
    """

    def reached(batch: int) -> Range:
        cut = replace(plan, batch_per_rank=batch)
        return predict(workload, step, between, cut, ranks=ranks, images=1).efficiency

    batches = range(1, 4097)
    found = []
    for end in ("middle", "worst"):
        index = bisect.bisect_left(batches, share, key=lambda batch: getattr(reached(batch), end))
        found.append(batches[index] if index < len(batches) else None)
    return found[0], found[1]
