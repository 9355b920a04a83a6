"""Synchronised batch normalisation: several ranks together do what one process does with all of the images."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.harness import run_ranks
from torch import Tensor, nn

from veilray.models.build import build_model
from veilray.models.config import ModelConfig
from veilray.parallel import batch_norm
from veilray.parallel.batch_norm import SynchronisedBatchNorm2d, exchanged_bytes, synchronised
from veilray.parallel.group import ALONE, Group

# Of a batch, for each rank; the last has no image.
SHARES = (4, 1, 0)
STEPS = 3

PROGRAM = """
import copy, json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[3])
from steps import layers, images, run_steps
from veilray.parallel.batch_norm import synchronised
from veilray.parallel.joining import joined
torch.set_num_threads(1)
cases = json.loads(sys.argv[2])
with joined(torch.device("cpu"), timeout=60) as group:
    for case, options in cases.items():
        shares = options["shares"]
        start = sum(shares[:group.rank])
        model = copy.deepcopy(synchronised(layers(options), group))
        result = run_steps(model, options, slice(start, start + shares[group.rank]))
        for name, value in result.items():
            if name.startswith("grad/"):
                group.sum_(value)
        save_file(result, Path(sys.argv[1]) / f"{case}-{group.rank}.safetensors")
"""

# Shared by the ranks, which import it as a file, and by this process, the oracle.
STEPS_SOURCE = """
import torch
from torch import nn

def layers(options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=options["momentum"]), nn.ReLU(),
                          nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=options["momentum"]))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn(value.shape) * 0.3 + 0.5)
    model = model.to(getattr(torch, options["dtype"]))
    return model.to(memory_format=torch.channels_last) if options["channels_last"] else model

def images(options, step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(5, 1, 8, 7, generator=generator, dtype=torch.float64) * 2 + options["shift"]
    x = x.to(getattr(torch, options["dtype"]))
    return x.contiguous(memory_format=torch.channels_last) if options["channels_last"] else x

def run_steps(model, options, share):
    result = {}
    model.train()
    for step in range(options["steps"]):
        x = images(options, step)[share].clone().requires_grad_()
        half = options["autocast"]
        with torch.autocast("cpu", getattr(torch, half or "bfloat16"), enabled=bool(half)):
            y = model(x)
        assert not half or y.dtype == getattr(torch, half)
        y = y.float() if half else y
        weights = torch.sin(torch.arange(y.shape[1:].numel(), dtype=y.dtype)).view(y.shape[1:])
        model.zero_grad()
        ((y + 0.1 * y * y) * weights).sum().backward()
        result[f"y/{step}"], result[f"dx/{step}"] = y.detach().contiguous(), x.grad.contiguous()
        for name, value in model.named_parameters():
            result[f"grad/{step}/{name}"] = value.grad.clone().contiguous()
    for name, value in model.state_dict().items():
        result[f"state/{name}"] = value.clone().contiguous()
    model.eval()
    with torch.no_grad():
        result["eval"] = model(images(options, 99)).contiguous()
    return result
"""


def _options(**changes: Any) -> dict[str, Any]:
    base = {"dtype": "float64", "channels_last": False, "autocast": "", "momentum": 0.1, "shift": 0.0}
    return {**base, "shares": SHARES, "steps": STEPS, **changes}


# Case, largest relative error, what it changes. Half precision rounds each activation; whether ranks share their
# statistics shows far above that.
CASES: dict[str, tuple[float, dict[str, Any]]] = {
    "float64": (1e-12, {}),
    "cumulative": (1e-12, {"momentum": None, "channels_last": True}),
    # A mean 1000 times the deviation: sums of squares would lose six of the sixteen digits, a merge does not.
    "far-from-zero": (1e-10, {"shift": 2000.0}),
    "float32": (2e-5, {"dtype": "float32"}),
    "channels-last": (2e-5, {"dtype": "float32", "channels_last": True}),
    "bf16": (5e-2, {"dtype": "float32", "autocast": "bfloat16", "channels_last": True}),
    "fp16": (1e-2, {"dtype": "float32", "autocast": "float16"}),
}


@pytest.mark.slow
def test_ranks_together_are_one_process(tmp_path: Path) -> None:
    cases = {name: _options(**changes) for name, (_, changes) in CASES.items()}
    (tmp_path / "steps.py").write_text(STEPS_SOURCE)
    for left in run_ranks(PROGRAM, len(SHARES), arguments=[tmp_path, json.dumps(cases), tmp_path]):
        assert left.status == 0, left.err[-600:]
    oracle: dict[str, Any] = {}
    exec(STEPS_SOURCE, oracle)
    for case, options in cases.items():
        expected = oracle["run_steps"](oracle["layers"](options), options, slice(None))
        found = [load_file(tmp_path / f"{case}-{rank}.safetensors") for rank in range(len(SHARES))]
        _compare(case, found, expected, CASES[case][0])


def _compare(case: str, found: list[dict[str, Tensor]], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found[0].keys() == expected.keys()
    for name, value in expected.items():
        split = name.startswith(("y/", "dx/"))
        for part in [torch.cat([one[name] for one in found])] if split else [one[name] for one in found]:
            # A floor, because a bias before a normalisation has a gradient that is zero but for rounding.
            error = (part.double() - value.double()).norm() / value.double().norm().clamp_min(1.0)
            assert error <= tolerance, f"{case}: {name}: {error:.2e}"
        if name.startswith(("grad/", "state/")):
            assert all(torch.equal(one[name], found[0][name]) for one in found), f"{case}: {name} differs on ranks"


def test_one_rank_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert synchronised(model, ALONE) is model
    assert type(model[0]) is nn.BatchNorm2d


def test_weights_and_checkpoints_are_interchangeable() -> None:
    config = ModelConfig(name="unetpp", width=4, depth=3)
    plain, other = build_model(config), build_model(config)
    parameters = {name: id(value) for name, value in other.named_parameters()}
    converted = synchronised(other, Group(0, 2))
    assert any(isinstance(module, SynchronisedBatchNorm2d) for module in converted.modules())
    assert not any(type(module) is nn.BatchNorm2d for module in converted.modules())
    assert {name: id(value) for name, value in converted.named_parameters()} == parameters
    assert list(plain.state_dict()) == list(converted.state_dict())
    converted.load_state_dict(plain.state_dict())
    average = copy.deepcopy(converted)
    assert all(
        torch.equal(a, b) for a, b in zip(average.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(average.eval()(x), plain.eval()(x))


def test_a_copy_has_statistics_of_its_own() -> None:
    layer = synchronised(nn.Sequential(nn.BatchNorm2d(2)), Group(0, 2))
    copied = copy.deepcopy(layer)
    copied[0].running_mean.fill_(7.0)
    assert torch.equal(layer[0].running_mean, torch.zeros(2))


def test_what_cannot_be_synchronised_is_refused() -> None:
    for layer in (nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2, track_running_stats=False)):
        with pytest.raises(ValueError, match="running statistics"):
            synchronised(nn.Sequential(layer), Group(0, 2))


def test_the_bytes_of_its_exchanges_are_those_that_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = synchronised(nn.Sequential(nn.BatchNorm2d(5)), Group(1, 3)).train()[0]
    sent: list[Tensor] = []
    monkeypatch.setattr(Group, "sum_", lambda _, tensor: sent.append(tensor.clone()) or tensor)
    layer(torch.rand(2, 5, 4, 4, requires_grad=True)).sum().backward()
    assert tuple(tensor.nbytes for tensor in sent) == exchanged_bytes(5, world_size=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_its_gradient_is_exact_to_one_rounding(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = synchronised(nn.Sequential(nn.BatchNorm2d(3)), Group(0, 2)).train()[0]  # no process group: its own images
    nn.init.constant_(layer.weight, 1.7)
    monkeypatch.setattr(batch_norm, "_CPU_VALUES", 400)  # two images at a time
    x, upstream = torch.randn(2, 5, 3, 9, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    # A mean, along which no part of the gradient is left, and some that goes with x.
    x, upstream = (3.0 * x + 1.0).requires_grad_(), upstream + 0.5 * x.square() + 5.0
    (gradient,) = torch.autograd.grad(layer(x), x, upstream)
    exact = x.detach().double().requires_grad_()
    output = nn.functional.batch_norm(exact, None, None, layer.weight.double(), layer.bias.double(), training=True)
    (expected,) = torch.autograd.grad(output, exact, upstream.double())
    assert gradient.dtype == dtype
    assert (gradient - expected).norm() <= 0.5 * max(torch.finfo(dtype).eps, 1e-5) * expected.norm()
    assert gradient.double().mean((0, 2, 3)).abs().max() < 1e-3 * expected.std()


def test_one_value_in_all_is_refused() -> None:
    layer = synchronised(nn.Sequential(nn.BatchNorm2d(2)), Group(0, 2)).train()  # no process group: sums are its own
    with pytest.raises(ValueError, match="one value"):
        layer(torch.rand(1, 2, 1, 1))
