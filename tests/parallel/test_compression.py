"""Compressed gradients: the rounded mean of the rounded, the same bits on all ranks, half the bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.harness import run_ranks
from torch import Tensor

BUCKETS = """
import json, sys, torch, torch.distributed as dist
from pathlib import Path
from safetensors.torch import save_file
from veilray.parallel.compression import Bf16Average
from veilray.parallel.joining import joined
torch.set_num_threads(1)
sent = 0
send = dist.isend
def counted(tensor, *arguments, **options):
    global sent
    sent += tensor.numel() * tensor.element_size()
    return send(tensor, *arguments, **options)
dist.isend = counted
with joined(torch.device("cpu"), timeout=60) as group:
    average, result = Bf16Average(group), {}
    for step in range(2):
        generator = torch.Generator().manual_seed(10 * step + group.rank)
        futures = []
        sizes = json.loads(sys.argv[2])
        for index, size in enumerate(sizes):
            values = torch.randn(size, generator=generator) * 10.0 ** (index - 3)
            if size > 4:
                values[0] = float("inf") if group.rank == 0 else 1.0
                values[1] = float("nan") if group.rank == 1 else 1.0
                values[2] = 3e38
                values[3] = 1e-39
            result[f"own/{step}/{index}"] = values.clone()
            futures.append((values, average.add(values, index=index, last=index + 1 == len(sizes))))
        for index, (values, future) in enumerate(futures):
            assert future.wait().data_ptr() == values.data_ptr()
            result[f"mean/{step}/{index}"] = values
    result["sent"] = torch.tensor(sent)
    save_file(result, Path(sys.argv[1]) / f"rank-{group.rank}.safetensors")
"""

TRAINING = """
import copy, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from veilray.parallel.compression import compress_gradients
from veilray.parallel.joining import joined
torch.set_num_threads(1)
with joined(torch.device("cpu"), timeout=60) as group:
    torch.manual_seed(1)
    layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(6)]
    plain = nn.Sequential(nn.Linear(8, 64), *layers, nn.Linear(64, 1))
    result = {}
    for name in ("fp32", "bf16"):
        model = copy.deepcopy(plain)
        options = {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.02, "static_graph": True}
        ddp = DistributedDataParallel(model, **options)
        if name == "bf16":
            compress_gradients(ddp, group)
        for step in range(3):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(100 * step + group.rank))
            model.zero_grad()
            ddp(x).square().sum().backward()
            for key, value in model.named_parameters():
                result[f"{name}/{step}/{key}"] = value.grad.clone()
    save_file(result, Path(sys.argv[1]) / f"rank-{group.rank}.safetensors")
"""

# Fewer values than ranks, an odd number, several megabytes.
RANKS = 3
STEPS = 2
SIZES = (7, 1, 2, 100_003, 1_000_000)


def _run(script: str, folder: Path, *arguments: object) -> list[dict[str, Tensor]]:
    for left in run_ranks(script, RANKS, arguments=[folder, *arguments]):
        assert left.status == 0, left.err[-1000:]
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(RANKS)]


@pytest.mark.slow
def test_the_mean_is_that_of_rounded_values_rounded_once(tmp_path: Path) -> None:
    found = _run(BUCKETS, tmp_path, json.dumps(SIZES))
    # A ring all-reduce of n ranks sends 2 (n - 1) times the gradient, over all ranks, at 4 bytes a value in float32.
    assert sum(int(one["sent"]) for one in found) == STEPS * 2 * (RANKS - 1) * sum(SIZES) * 2
    for step in range(STEPS):
        for index in range(len(SIZES)):
            means = [one[f"mean/{step}/{index}"] for one in found]
            own = [one[f"own/{step}/{index}"] for one in found]
            total = own[0].bfloat16().float()
            for values in own[1:]:
                total = total + values.bfloat16().float()
            expected = (total / RANKS).bfloat16().float()
            for mean in means:
                assert torch.equal(mean.view(torch.int32), means[0].view(torch.int32)), "ranks differ"
                torch.testing.assert_close(mean, expected, rtol=0, atol=0, equal_nan=True)
            if SIZES[index] > 4:
                assert expected[0] == float("inf")
                assert expected[1].isnan()
            # One rounding of each value and one of the mean, each by 2^-8 of it at most.
            bound = 2.01 * 2**-8 * torch.stack(own).abs().mean(dim=0) + 1e-38
            error = (expected - torch.stack(own).double().mean(dim=0)).abs()
            finite = torch.isfinite(expected)
            assert (error[finite] <= bound[finite]).all()


@pytest.mark.slow
def test_ddp_computes_nearly_the_gradients_of_fp32(tmp_path: Path) -> None:
    found = _run(TRAINING, tmp_path)
    for name, value in found[0].items():
        assert all(torch.equal(one[name], value) for one in found), name
        if name.startswith("bf16/"):
            exact = found[0]["fp32" + name[4:]]
            assert not torch.equal(value, exact), name
            assert (value - exact).norm() / exact.norm() < 2**-7, name
