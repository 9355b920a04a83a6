"""How long a data-parallel training step takes: compute, latency, bandwidth, overlap and stragglers.

A step is the slowest rank's arithmetic, plus that part of the exchange of gradients which the backward pass does not
hide, plus the exchanges of batch statistics, which nothing hides. Times are in seconds, rates in units a second, shares
between 0 and 1. Speed alone is predicted: whether a larger global batch still learns as well is another question.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from scipy import integrate, stats

from veilray.errors import UsageError
from veilray.evaluation.benchmark.workload import Workload
from veilray.parallel.batch_norm import exchanged_bytes


@dataclass(frozen=True, kw_only=True)
class Device:
    """How fast one rank computes. A step of b images takes overhead + b (FLOP / rate + activations / traffic)."""

    overhead_s: float
    """Seconds of a step whatever its batch: launches, the optimiser, Python."""
    flop_per_s: float
    """Arithmetic reached, operations a second."""
    traffic_bytes_per_s: float = math.inf
    """Activation bytes of the forward pass a second; infinite where `flop_per_s` stands for all of the time."""
    contention: float = 0.0
    """How much slower, as a share, each further rank on the host makes them all: ranks of one processor share its
    memory. 0 where every rank has a device of its own."""
    straggling: float = 0.0
    """Standard deviation of a rank's compute time from step to step, as a share of it; ranks vary independently."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What carries gradients between two ranks."""

    latency_s: float
    """Seconds before the first byte of a message arrives."""
    bytes_per_s: float
    """Bytes a second in one direction."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """How ranks are joined: `local` inside a host, `between` from host to host."""

    ranks_per_host: int
    local: Link
    between: Link | None = None
    """None where there is one host."""
    links_per_host: int = 1
    """Links between hosts that the ranks of a host share; where there is one for each rank, none is shared."""
    overlap: float = 1.0
    """Share of the backward pass behind which an exchange can go on: 0 none, 1 all but the last bucket."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the work is cut up, and how gradients travel."""

    batch_per_rank: int
    """Images that a rank sees at a time; times ranks and `accumulation`, the global batch."""
    accumulation: int = 1
    """Forward and backward passes to one exchange of gradients."""
    bucket_bytes: float = 25 * 2**20
    """Gradients in fp32 that are exchanged together: DistributedDataParallel's bucket_cap_mb."""
    compression: float = 1.0
    """Bytes sent for each byte of fp32 gradient: 0.5 with bf16."""
    synchronised: bool = True
    """Whether batch statistics, where the network has any, cross ranks; nothing does under group normalisation."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """A predicted step, in seconds."""

    compute_s: float
    """Arithmetic of a rank, with the contention of its neighbours."""
    straggling_s: float
    """What the slowest rank takes on top, on average."""
    exchange_s: float
    """The exchange of all gradients, hidden or not."""
    exposed_s: float
    """The part of the exchange that the backward pass does not hide."""
    statistics_s: float
    """The exchange of batch statistics, for which every layer waits."""

    @property
    def total_s(self) -> float:
        """The whole step."""
        return self.compute_s + self.straggling_s + self.exposed_s + self.statistics_s


def step_time(workload: Workload, device: Device, network: Network, plan: Plan, *, ranks: int) -> StepTime:
    """Predict a step on `ranks` ranks. Raises UsageError where the hosts are not filled evenly, or not joined."""
    neighbours = min(ranks, network.ranks_per_host) - 1
    pass_s = plan.batch_per_rank * (
        workload.flop_per_image / device.flop_per_s + workload.activation_bytes / device.traffic_bytes_per_s
    )
    slower = 1.0 + device.contention * neighbours
    compute = slower * (device.overhead_s + plan.accumulation * pass_s)
    buckets = max(1, math.ceil(workload.gradient_bytes / plan.bucket_bytes))
    bucket = all_reduce_s(workload.gradient_bytes * plan.compression / buckets, network, ranks=ranks)
    # The last bucket is full only when the last backward pass is over.
    hidden = network.overlap * slower * pass_s * workload.backward_share * (buckets - 1) / buckets
    statistics = _statistics_s(workload, network, ranks=ranks) if plan.synchronised else 0.0
    return StepTime(
        compute_s=compute,
        straggling_s=compute * device.straggling * expected_maximum(ranks),
        exchange_s=buckets * bucket,
        exposed_s=max(bucket, buckets * bucket - hidden),
        statistics_s=plan.accumulation * statistics,
    )


def all_reduce_s(message_bytes: float, network: Network, *, ranks: int) -> float:
    """Seconds to sum `message_bytes` over all ranks: first inside each host, then between the hosts.

    Inside a host by a ring (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69 (2009) 117-124), which leaves each rank
    with a share of the sum; between hosts these shares are summed by a ring or by a pair of binary trees (Sanders et
    al., Parallel Computing 35 (2009) 581-594), whichever is faster, as NCCL chooses. 0 for one rank.
    """
    inside = min(ranks, network.ranks_per_host)
    hosts, rest = divmod(ranks, inside)
    if rest:
        raise UsageError(f"{ranks} ranks do not fill hosts of {network.ranks_per_host}; give a multiple")
    seconds = _ring_s(message_bytes, network.local, members=inside)
    if hosts == 1:
        return seconds
    if network.between is None:
        raise UsageError(f"{ranks} ranks need {hosts} hosts, and nothing is said of what joins them")
    # A host sends its ranks' shares, the whole message together, over the links it has.
    share = message_bytes / min(inside, network.links_per_host)
    return seconds + min(_ring_s(share, network.between, members=hosts), _trees_s(share, network.between, hosts))


def efficiency(workload: Workload, device: Device, network: Network, plan: Plan, *, ranks: int) -> float:
    """Images a second and rank on `ranks` ranks, as a share of what one rank alone does at the same plan."""
    alone = step_time(workload, device, network, plan, ranks=1).total_s
    return alone / step_time(workload, device, network, plan, ranks=ranks).total_s


def images_per_s(workload: Workload, device: Device, network: Network, plan: Plan, *, ranks: int) -> float:
    """Images that all ranks together train on in a second."""
    images = plan.batch_per_rank * plan.accumulation * ranks
    return images / step_time(workload, device, network, plan, ranks=ranks).total_s


def epoch_s(workload: Workload, device: Device, network: Network, plan: Plan, *, ranks: int, images: int) -> float:
    """Seconds to train on `images` images once; the last step, smaller or not, counts as a whole one."""
    steps = math.ceil(images / (plan.batch_per_rank * plan.accumulation * ranks))
    return steps * step_time(workload, device, network, plan, ranks=ranks).total_s


@functools.cache
def expected_maximum(count: int) -> float:
    """Mean of the largest of `count` independent standard normal values: 0, 0.56, 0.85, ..., 3.0 for 512."""
    if count == 1:
        return 0.0
    return float(
        integrate.quad(
            lambda x: x * count * stats.norm.pdf(x) * stats.norm.cdf(x) ** (count - 1), -10.0, 10.0, limit=200
        )[0]
    )


def _statistics_s(workload: Workload, network: Network, *, ranks: int) -> float:
    """Seconds for which one forward and backward pass waits for batch statistics."""
    messages = (exchanged_bytes(channels, world_size=ranks) for channels in workload.batch_norms)
    return sum(all_reduce_s(message, network, ranks=ranks) for pair in messages for message in pair)


def _ring_s(message_bytes: float, link: Link, *, members: int) -> float:
    return 2 * (members - 1) * (link.latency_s + message_bytes / members / link.bytes_per_s)


def _trees_s(message_bytes: float, link: Link, members: int) -> float:
    # Up and down; two trees, each with half of the message, keep both directions of every link busy.
    return 2 * math.ceil(math.log2(members)) * link.latency_s + 2 * message_bytes / link.bytes_per_s
