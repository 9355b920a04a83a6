"""The published networks: parameters, order of layers, shapes of every level, and an independent forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veilray.errors import UsageError
from veilray.models.build import DenoisingNetwork, build_model
from veilray.models.config import ModelConfig
from veilray.models.layers import DoublingConv, norm_layer
from veilray.models.unet import UNet
from veilray.models.unetpp import UNetPlusPlus

ORDERS = {
    "conv-relu-conv-norm-relu": [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d, nn.ReLU],
    "conv-norm-relu-conv-norm-relu": [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d, nn.ReLU],
}
VARIANTS = [
    ModelConfig(name=name, width=4, depth=3, norm=norm, block=block, residual=residual)
    for name in ("unet", "unetpp")
    for norm in ("batch", "group")
    for block in ORDERS
    for residual in (False, True)
]


def lively(model: DenoisingNetwork) -> DenoisingNetwork:
    """Running statistics and affine parameters off their initial values, so that no layer acts as the identity."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.1)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(module.weight.shape, generator=generator) * 0.2)
    return model.eval()


def network(**fields: object) -> DenoisingNetwork:
    torch.manual_seed(3)
    return lively(build_model(ModelConfig.model_validate({"width": 4, "depth": 3, **fields})))


@pytest.mark.parametrize(("kind", "published"), [(UNet, 31_036_481), (UNetPlusPlus, 36_621_380)])
def test_published_number_of_parameters(kind: type[DenoisingNetwork], published: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in kind().parameters()) == published


@pytest.mark.parametrize("block", ORDERS)
@pytest.mark.parametrize("name", ["unet", "unetpp"])
def test_every_block_has_the_layers_in_the_order_it_names(name: str, block: str) -> None:
    blocks = [module for module in network(name=name, block=block).modules() if isinstance(module, nn.Sequential)]
    assert len(blocks) == (5 if name == "unet" else 6)
    for sequence in blocks:
        assert [type(layer) for layer in sequence] == ORDERS[block]
        convolutions = [layer for layer in sequence if isinstance(layer, nn.Conv2d)]
        assert all(conv.kernel_size == (3, 3) and conv.padding == (1, 1) for conv in convolutions)
        assert all(conv.bias is not None and conv.padding_mode == "zeros" for conv in convolutions)


def shapes_of(model: nn.Module, kinds: tuple[type[nn.Module], ...], x: Tensor) -> list[tuple[tuple[int, ...], ...]]:
    """(input shape, output shape) of each module of these kinds, in the order they run."""
    seen: list[tuple[tuple[int, ...], ...]] = []
    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda _, given, out: seen.append((tuple(given[0].shape), tuple(out.shape))))
    model(x)
    return seen


def test_shapes_of_every_unet_level_at_the_published_size() -> None:
    with torch.device("meta"):
        seen = shapes_of(UNet().eval(), (nn.Sequential, nn.ConvTranspose2d), torch.zeros(2, 1, 256, 256))
    levels = [(64, 256), (128, 128), (256, 64), (512, 32), (1024, 16)]
    assert [out[1:3] for _, out in seen[:5]] == levels
    assert [given[1:3] for given, _ in seen[:5]] == [(1, 256), (64, 128), (128, 64), (256, 32), (512, 16)]
    expected_up = []
    for (below, small), (own, side) in zip(levels[:0:-1], levels[-2::-1], strict=True):
        expected_up += [
            ((2, below, small, small), (2, own, side, side)),
            ((2, 2 * own, side, side), (2, own, side, side)),
        ]
    assert seen[5:] == expected_up


def test_shapes_of_every_unetpp_node_at_the_published_size() -> None:
    with torch.device("meta"):
        model = UNetPlusPlus().eval()
    channels = [64, 128, 256, 512, 1024]
    assert set(model.nodes) == {f"x{i}_{j}" for i in range(5) for j in range(5 - i)}
    for i in range(5):
        for j in range(5 - i):
            expected = ([1, *channels][i] if j == 0 else j * channels[i] + channels[i + 1], channels[i])
            first = model.nodes[f"x{i}_{j}"][0]
            assert (first.in_channels, first.out_channels) == expected, (i, j)
    assert [(head.in_channels, head.out_channels, head.kernel_size) for head in model.heads] == [(64, 1, (1, 1))] * 4
    assert not any(isinstance(module, nn.ConvTranspose2d) for module in model.modules())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_doubling_convolution_in_bf16_is_the_transposed_one(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = DoublingConv(6, 4).to(torch.bfloat16)
    x = torch.randn(2, 6, 5, 7).to(torch.bfloat16).to(memory_format=layout).requires_grad_()
    output = layer(x)
    sent_back = torch.randn_like(output)
    output.backward(sent_back)

    exact = [one.detach().double().requires_grad_() for one in (x, layer.weight, layer.bias)]
    expected = F.conv_transpose2d(*exact, stride=2)
    expected.backward(sent_back.double())
    torch.testing.assert_close(output.double(), expected, rtol=1e-2, atol=1e-2)
    for ours, wanted in zip((x, layer.weight, layer.bias), exact, strict=True):
        assert ours.grad is not None
        assert wanted.grad is not None
        scale = float(wanted.grad.abs().max())
        torch.testing.assert_close(ours.grad.double(), wanted.grad, rtol=0.0, atol=1e-2 * scale)


def test_a_doubling_convolution_leaves_the_rest_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torchs: list[torch.dtype] = []
    monkeypatch.setattr(nn.ConvTranspose2d, "forward", lambda _, x, size=None: torchs.append(x.dtype) or x)
    layer, x = DoublingConv(2, 2), torch.zeros(1, 2, 4, 4)
    layer.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert torchs == []
    with torch.no_grad():
        layer(x.to(torch.bfloat16))
    layer.float()(x)
    layer.double()(x.double())
    assert torchs == [torch.bfloat16, torch.float32, torch.float64]


def block_by_hand(x: Tensor, state: dict[str, Tensor], prefix: str) -> Tensor:
    x = F.relu(F.conv2d(x, state[f"{prefix}.0.weight"], state[f"{prefix}.0.bias"], padding=1))
    x = F.conv2d(x, state[f"{prefix}.2.weight"], state[f"{prefix}.2.bias"], padding=1)
    mean, variance, weight, bias = (
        state[f"{prefix}.3.{name}"].view(1, -1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias")
    )
    return F.relu((x - mean) / (variance + 1e-5).sqrt() * weight + bias)


def corners_aligned(x: Tensor) -> Tensor:
    """Bilinear upsampling by two as two matrices of interpolation weights."""

    def matrix(size: int) -> Tensor:
        positions = np.linspace(0.0, size - 1.0, 2 * size)
        columns = [np.interp(positions, np.arange(size), row) for row in np.eye(size)]
        return torch.from_numpy(np.stack(columns, axis=1)).to(x.dtype)

    return torch.einsum("qh,nchw,pw->ncqp", matrix(x.shape[2]), x, matrix(x.shape[3]))


def test_unet_equals_a_forward_pass_written_from_the_paper() -> None:
    model = network(name="unet").double()
    state, x = model.state_dict(), torch.rand(2, 1, 12, 20, dtype=torch.float64)
    top = block_by_hand(x, state, "encoder.0")
    middle = block_by_hand(F.max_pool2d(top, 2), state, "encoder.1")
    y = block_by_hand(F.max_pool2d(middle, 2), state, "encoder.2")
    for level, skip in ((1, middle), (0, top)):
        y = F.conv_transpose2d(y, state[f"up.{level}.weight"], state[f"up.{level}.bias"], stride=2)
        y = block_by_hand(torch.cat([skip, y], dim=1), state, f"decoder.{level}")
    y = F.conv2d(y, state["head.weight"], state["head.bias"])
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-10)


def test_unetpp_equals_a_forward_pass_written_from_the_paper() -> None:
    model = network(name="unetpp").double()
    state, x = model.state_dict(), torch.rand(2, 1, 12, 20, dtype=torch.float64)
    x00 = block_by_hand(x, state, "nodes.x0_0")
    x10 = block_by_hand(F.max_pool2d(x00, 2), state, "nodes.x1_0")
    x20 = block_by_hand(F.max_pool2d(x10, 2), state, "nodes.x2_0")
    x01 = block_by_hand(torch.cat([x00, corners_aligned(x10)], dim=1), state, "nodes.x0_1")
    x11 = block_by_hand(torch.cat([x10, corners_aligned(x20)], dim=1), state, "nodes.x1_1")
    x02 = block_by_hand(torch.cat([x00, x01, corners_aligned(x11)], dim=1), state, "nodes.x0_2")
    for output, node, number in zip(model.forward_heads(x), (x01, x02), (0, 1), strict=True):
        by_hand = F.conv2d(node, state[f"heads.{number}.weight"], state[f"heads.{number}.bias"])
        torch.testing.assert_close(output, by_hand, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(x), model.forward_heads(x)[-1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["unet", "unetpp"])
def test_residual_networks_add_the_input(name: str) -> None:
    plain, residual = network(name=name), network(name=name, residual=True)
    residual.load_state_dict(plain.state_dict())
    x = torch.rand(1, 1, 9, 14)
    torch.testing.assert_close(residual(x), x + plain(x))


@pytest.mark.parametrize("depth", [2, 4])
def test_pruned_heads_equal_the_full_network_and_run_fewer_nodes(depth: int) -> None:
    model = network(name="unetpp", depth=depth)
    assert isinstance(model, UNetPlusPlus)
    x = torch.rand(2, 1, 21, 16)
    full = model.forward_heads(x)
    assert len(full) == depth - 1
    ran: list[str] = []
    for name, node in model.nodes.items():
        node.register_forward_hook(lambda *_, name=name: ran.append(name))
    for head in range(1, depth):
        ran.clear()
        torch.testing.assert_close(model(x, head=head), full[head - 1], rtol=0, atol=0)
        assert sorted(ran) == sorted(f"x{i}_{j}" for i in range(head + 1) for j in range(head + 1 - i))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_pruned_network_is_a_smaller_one_with_the_same_output(norm: str) -> None:
    model = network(name="unetpp", depth=4, norm=norm, residual=True, deep_supervision=True).eval()
    x = torch.rand(2, 1, 32, 24)
    for head, full in enumerate(model.forward_heads(x), start=1):
        smaller = model.pruned(head)
        assert (smaller.config.depth, smaller.training) == (head + 1, False)
        torch.testing.assert_close(smaller(x), full, rtol=0, atol=0)
    assert sum(p.numel() for p in model.pruned(1).parameters()) < 0.1 * sum(p.numel() for p in model.parameters())
    with pytest.raises(UsageError, match="heads 1 to 3"):
        model.pruned(4)


@pytest.mark.slow
def test_deep_supervision_reaches_every_head_and_the_last_output_only_the_last() -> None:
    model = network(name="unetpp", deep_supervision=True)
    assert isinstance(model, UNetPlusPlus)
    sum(output.mean() for output in model.forward_heads(torch.rand(1, 1, 16, 16))).backward()
    assert all(head.weight.grad is not None for head in model.heads)
    model.zero_grad(set_to_none=True)
    model(torch.rand(1, 1, 16, 16)).mean().backward()
    assert [head.weight.grad is not None for head in model.heads] == [False, True]


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_configuration_survives_the_building(config: ModelConfig) -> None:
    model = build_model(config)
    assert model.config == config
    assert isinstance(model, UNet if config.name == "unet" else UNetPlusPlus)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)]
    assert all(isinstance(norm, nn.GroupNorm) == (config.norm == "group") for norm in norms)
    assert model.has_global_statistics == (config.norm == "group")


@pytest.mark.parametrize(("channels", "groups"), [(64, 8), (16, 8), (8, 8), (12, 4), (6, 2), (5, 1), (1, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    norm = norm_layer(channels, norm="group")
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups
    assert norm(torch.rand(2, channels, 4, 4)).shape == (2, channels, 4, 4)


def test_initial_weights_follow_the_seed() -> None:
    first, second, other = network(), network(), None
    torch.manual_seed(4)
    other = build_model(ModelConfig(width=4, depth=3))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("name", ["unet", "unetpp"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_channels_last_and_autocast_train(name: str, norm: str) -> None:
    model = network(name=name, norm=norm).train().to(memory_format=torch.channels_last)
    x = torch.rand(2, 1, 17, 24).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
    output.float().abs().mean().backward()
    with torch.no_grad():
        plain = model.to(memory_format=torch.contiguous_format)(x.contiguous())
    assert (output.float() - plain).abs().max() < 0.1
    used = [p for n, p in model.named_parameters() if not n.startswith("heads.0")]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in used)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "unetpp"])
def test_one_graph_without_breaks(name: str) -> None:
    model = network(name=name).train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.rand(2, 1, 17, 24)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(
    ("fields", "word"), [({"width": 0}, "width"), ({"depth": 1}, "depth"), ({"norm": "layer"}, "norm")]
)
def test_models_that_do_not_exist_say_which_field_is_wrong(fields: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        UNet(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", [0, 3, -1])
def test_heads_that_do_not_exist_are_refused(head: int) -> None:
    with pytest.raises(UsageError, match="heads 1 to 2"):
        network(name="unetpp")(torch.rand(1, 1, 8, 8), head=head)
