"""The scaling model against closed forms, and its fit against machines whose parameters are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from veilray.errors import DataError, UsageError
from veilray.evaluation.benchmark.workload import Workload, count_workload
from veilray.evaluation.scaling.fit import Measured, MeasuredExchange, MeasuredStep, fit_scaling, leave_out_errors
from veilray.evaluation.scaling.interconnects import (
    BETWEEN_HOSTS,
    Interconnect,
    assumed_step,
    measured_step,
    predict,
    smallest_batch,
)
from veilray.evaluation.scaling.model import (
    Device,
    Link,
    Network,
    Plan,
    all_reduce_s,
    efficiency,
    epoch_s,
    expected_maximum,
    step_time,
)
from veilray.models.build import build_model
from veilray.models.config import ModelConfig

DEVICE = Device(overhead_s=0.02, flop_per_s=3e10, traffic_bytes_per_s=4e9)
LINK = Link(latency_s=2e-4, bytes_per_s=1.2e9)
HOST = Network(ranks_per_host=8, local=LINK)
PLAN = Plan(batch_per_rank=4, synchronised=False)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return count_workload(ModelConfig(name="unet", width=16), size=64)


def _convolutions(model: nn.Module, size: int) -> float:
    """Operations of all convolutions in a forward pass, from the sizes that come out of them."""
    total = 0.0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        pixels = output[0, 0].numel() if isinstance(module, nn.Conv2d) else inputs[0][0, 0].numel()
        total += 2 * module.in_channels * module.out_channels * math.prod(module.kernel_size) * pixels

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    model.eval()(torch.zeros(1, 1, size, size))
    return total


@pytest.mark.parametrize("name", ["unet", "unetpp"])
def test_the_arithmetic_is_that_of_the_convolutions(name: str) -> None:
    config = ModelConfig(name=name, width=4, depth=3)
    counted = count_workload(config, size=32)
    model = build_model(config)
    assert counted.flop_per_image - counted.backward_flop == _convolutions(model, 32)
    assert 0.6 < counted.backward_share < 2 / 3  # twice the forward pass, but for the image's own gradient
    assert counted.gradient_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_the_published_networks_have_the_published_sizes() -> None:
    counted = count_workload(ModelConfig(name="unet", width=64), size=256)
    assert counted.gradient_bytes == 4 * 31_036_481
    assert counted.name == "U-Net 64"


def test_one_rank_exchanges_nothing(workload: Workload) -> None:
    alone = step_time(workload, DEVICE, HOST, PLAN, ranks=1)
    assert alone.exchange_s == alone.exposed_s == alone.straggling_s == 0
    per_image = workload.flop_per_image / 3e10 + workload.activation_bytes / 4e9
    assert alone.total_s == pytest.approx(0.02 + 4 * per_image)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_ring_moves_each_byte_twice_but_for_a_ranks_own_share(ranks: int) -> None:
    without_latency = Network(ranks_per_host=8, local=Link(latency_s=0.0, bytes_per_s=1e9))
    assert all_reduce_s(1e9, without_latency, ranks=ranks) == pytest.approx(2 * (ranks - 1) / ranks)
    assert all_reduce_s(0.0, HOST, ranks=ranks) == pytest.approx(2 * (ranks - 1) * 2e-4)


def test_between_hosts_the_shared_links_carry_the_whole_message() -> None:
    slow = Link(latency_s=0.0, bytes_per_s=1e8)
    shared = Network(ranks_per_host=8, local=replace(LINK, bytes_per_s=math.inf), between=slow, links_per_host=1)
    own = replace(shared, links_per_host=8)
    inside = all_reduce_s(1e8, shared, ranks=8)
    over_one, over_eight = (all_reduce_s(1e8, network, ranks=16) - inside for network in (shared, own))
    assert over_one == pytest.approx(2 * (1 / 2) * 1.0)
    assert over_eight == pytest.approx(over_one / 8)


def test_small_messages_between_many_hosts_go_by_trees() -> None:
    network = Network(ranks_per_host=1, local=LINK, between=LINK)
    assert all_reduce_s(1.0, network, ranks=64) == pytest.approx(2 * 6 * 2e-4, rel=1e-3)
    assert all_reduce_s(1e9, network, ranks=64) == pytest.approx(2 * 63 * (2e-4 + 1e9 / 64 / 1.2e9))


def test_hosts_must_be_filled_and_joined() -> None:
    with pytest.raises(UsageError, match="do not fill hosts of 8"):
        all_reduce_s(1.0, HOST, ranks=12)
    with pytest.raises(UsageError, match="what joins them"):
        all_reduce_s(1.0, HOST, ranks=16)


def test_the_backward_pass_hides_all_but_the_last_bucket(workload: Workload) -> None:
    plan = Plan(batch_per_rank=1000, bucket_bytes=workload.gradient_bytes / 4)
    hidden = step_time(workload, DEVICE, HOST, plan, ranks=4)
    assert hidden.exposed_s == pytest.approx(hidden.exchange_s / 4)
    bare = step_time(workload, DEVICE, replace(HOST, overlap=0.0), plan, ranks=4)
    assert bare.exposed_s == bare.exchange_s
    one_bucket = step_time(workload, DEVICE, HOST, replace(plan, bucket_bytes=1e12), ranks=4)
    assert one_bucket.exposed_s == one_bucket.exchange_s


def test_options_do_what_they_are_for(workload: Workload) -> None:
    slow = Network(ranks_per_host=8, local=Link(latency_s=0.0, bytes_per_s=1e7), overlap=0.0)
    plain = step_time(workload, DEVICE, slow, PLAN, ranks=8)
    packed = step_time(workload, DEVICE, slow, replace(PLAN, compression=0.5), ranks=8)
    assert packed.exchange_s == pytest.approx(plain.exchange_s / 2)
    shares = [
        efficiency(workload, DEVICE, slow, plan, ranks=8)
        for plan in (PLAN, replace(PLAN, accumulation=4), replace(PLAN, accumulation=16))
    ]
    assert shares == sorted(shares)
    assert epoch_s(workload, DEVICE, slow, PLAN, ranks=8, images=33) == pytest.approx(2 * plain.total_s)


def test_batch_statistics_cost_two_exchanges_a_layer_and_pass(workload: Workload) -> None:
    assert workload.batch_norms == (16, 32, 64, 128, 256, 16, 32, 64, 128)  # one in each block
    plan = replace(PLAN, accumulation=3, synchronised=True)
    with_them = step_time(workload, DEVICE, HOST, plan, ranks=8)
    without = step_time(workload, DEVICE, HOST, replace(plan, synchronised=False), ranks=8)
    expected = 0.0
    for channels in workload.batch_norms:
        rows, sums = 8 * (1 + 2 * channels) * 8, 2 * channels * 4  # (ranks, 1 + 2 C) in float64, (2, C) in float32
        expected += 3 * (all_reduce_s(rows, HOST, ranks=8) + all_reduce_s(sums, HOST, ranks=8))
    assert with_them.total_s - without.total_s == pytest.approx(expected)
    grouped = count_workload(ModelConfig(name="unet", width=16, norm="group"), size=64)
    assert step_time(grouped, DEVICE, HOST, plan, ranks=8).statistics_s == 0


def test_the_slowest_of_many_ranks_is_the_expected_maximum() -> None:
    assert expected_maximum(1) == 0
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi))
    drawn = np.random.default_rng(1).standard_normal((4000, 64)).max(axis=1)
    assert expected_maximum(64) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / math.sqrt(len(drawn)))


def test_stragglers_and_neighbours_slow_the_compute(workload: Workload) -> None:
    device = replace(DEVICE, contention=0.1, straggling=0.05)
    alone = step_time(workload, device, HOST, PLAN, ranks=1)
    two = step_time(workload, device, HOST, PLAN, ranks=2)
    assert two.compute_s == pytest.approx(1.1 * alone.compute_s)
    assert two.straggling_s == pytest.approx(two.compute_s * 0.05 / math.sqrt(math.pi))


def _points(noise: float) -> list[Measured]:
    """A machine of known parameters, measured with `noise`, the standard deviation of log seconds."""
    device = Device(overhead_s=0.02, flop_per_s=3e10, traffic_bytes_per_s=2e9, contention=0.2, straggling=0.02)
    network = Network(ranks_per_host=2, local=Link(latency_s=3e-4, bytes_per_s=4e8), overlap=0.3)
    generator = np.random.default_rng(7)
    points: list[Measured] = []
    for name, width in (("unet", 8), ("unet", 16), ("unet", 24), ("unetpp", 8), ("unetpp", 16)):
        counted = count_workload(ModelConfig.model_validate({"name": name, "width": width}), size=64)
        for batch in (1, 4):
            for ranks, bucket in ((1, 25), (2, 25), (2, 0.5)):
                plan = Plan(batch_per_rank=batch, bucket_bytes=bucket * 2**20)
                seconds = step_time(counted, device, network, plan, ranks=ranks).total_s
                points.append(MeasuredStep(workload=counted, plan=plan, ranks=ranks, seconds=seconds))
    for size in (1e3, 1e5, 1e7):
        seconds = all_reduce_s(size, network, ranks=2)
        points.append(MeasuredExchange(message_bytes=size, ranks=2, seconds=seconds))
    return [replace(point, seconds=point.seconds * math.exp(noise * generator.standard_normal())) for point in points]


def _network(point: Measured) -> str | None:
    return point.workload.name if isinstance(point, MeasuredStep) else None


@pytest.mark.slow
def test_a_fit_finds_the_machine_it_was_measured_on() -> None:
    fit = fit_scaling(_points(noise=0.01), straggling=0.02, resamples=8, seed=3)
    truth = {"overhead_s": 0.02, "flop_per_s": 3e10, "contention": 0.2, "latency_s": 3e-4, "bytes_per_s": 4e8}
    for name, value in truth.items():
        assert fit.estimates[name].value == pytest.approx(value, rel=0.15), name
    assert fit.estimates["overlap"].value == pytest.approx(0.3, abs=0.15)
    assert max(map(abs, fit.errors)) < 0.05
    for estimate in fit.estimates.values():
        assert estimate.low <= estimate.high
    # A wider spread of the points makes wider intervals.
    rough = fit_scaling(_points(noise=0.1), straggling=0.02, resamples=8, seed=3)
    width = {kind: one.estimates["bytes_per_s"] for kind, one in (("fine", fit), ("rough", rough))}
    assert width["rough"].high / width["rough"].low > width["fine"].high / width["fine"].low


@pytest.mark.slow
def test_points_left_out_are_predicted_by_a_fit_that_has_not_seen_them() -> None:
    points = _points(noise=0.0)
    errors = leave_out_errors(points, straggling=0.02, group=_network)
    assert set(errors) == {"U-Net 8", "U-Net 16", "U-Net 24", "U-Net++ 8", "U-Net++ 16"}
    assert max(abs(error) for one in errors.values() for error in one) < 0.02
    # A point that does not belong shows in its own error, not in the others'.
    odd = [replace(point, seconds=2 * point.seconds) if _network(point) == "U-Net 8" else point for point in points]
    assert leave_out_errors(odd, straggling=0.02, group=_network)["U-Net 8"] == pytest.approx([-0.5] * 6, abs=0.02)


@pytest.mark.slow
def test_a_fit_needs_points_of_several_ranks() -> None:
    points = _points(noise=0.0)
    with pytest.raises(DataError, match="needs more points"):
        fit_scaling(points[:7], straggling=0.0, resamples=1, seed=0)
    with pytest.raises(DataError, match="several ranks"):
        fit_scaling([point for point in points if point.ranks == 1], straggling=0.0, resamples=1, seed=0)


@pytest.mark.parametrize("between", BETWEEN_HOSTS, ids=lambda link: link.name)
def test_predictions_are_ranges_and_bigger_clusters_are_not_more_efficient(between: Interconnect) -> None:
    workload = Workload(
        name="U-Net 64", gradient_bytes=124e6, flop_per_image=288e9, backward_flop=192e9, activation_bytes=352e6
    )
    step = assumed_step(workload)
    assert not step.measured
    before = 1.0
    for ranks in (8, 64, 512):
        found = predict(workload, step, between, Plan(batch_per_rank=32), ranks=ranks, images=112_120)
        assert found.step_s.best < found.step_s.middle < found.step_s.worst
        assert 1 > found.efficiency.best > found.efficiency.middle > found.efficiency.worst > 0
        assert found.efficiency.middle < before
        before = found.efficiency.middle


@pytest.mark.parametrize(("in_training", "slow"), [(1.0, 1.05), (1.02, 1.05), (1.4, 1.4)])
def test_what_a_whole_training_took_bounds_the_slow_end_of_a_measured_step(in_training: float, slow: float) -> None:
    image = measured_step(seconds=0.032, batch=32, spread=0.05, in_training=in_training).image_s
    assert (image.best, image.middle, image.worst) == pytest.approx((0.00095, 0.001, 0.001 * slow))


def test_half_the_bytes_are_worth_half_the_batch() -> None:
    workload = Workload(
        name="U-Net 64", gradient_bytes=124e6, flop_per_image=288e9, backward_flop=192e9, activation_bytes=352e6
    )
    step = measured_step(seconds=0.032, batch=32, spread=0.05)
    assert step.measured
    ethernet = BETWEEN_HOSTS[-1]
    plan = Plan(batch_per_rank=1)
    plain, packed = (
        smallest_batch(workload, step, ethernet, replace(plan, compression=share), ranks=64, share=0.9)
        for share in (1.0, 0.5)
    )
    for whole, half in zip(plain, packed, strict=True):
        assert whole is not None
        assert half is not None
        assert half == pytest.approx(whole / 2, rel=0.05)
    found = [
        predict(workload, step, ethernet, replace(plan, batch_per_rank=batch), ranks=64, images=1).efficiency.middle
        for batch in ((plain[0] or 0) - 1, plain[0] or 0)
    ]
    assert found[0] < 0.9 <= found[1]
