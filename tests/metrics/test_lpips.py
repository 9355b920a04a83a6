"""LPIPS against torchmetrics' network, with random weights everywhere and AlexNet's where they are to be had."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics.functional.image import lpips as oracle

from veilray.errors import DataError, LpipsUnavailable, UsageError
from veilray.metrics import lpips as lpips_module
from veilray.metrics.lpips import LPIPS, load_lpips

Weights = dict[str, Tensor]


def _torchvision_layers() -> nn.Sequential:
    """`features` of torchvision's AlexNet, layer by layer."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    )


@pytest.fixture(scope="module")
def weights() -> Weights:
    """A backbone drawn from a seed, under torchvision's names."""
    generator = torch.Generator().manual_seed(11)
    return {
        f"features.{name}": torch.randn(value.shape, generator=generator) * value[0].numel() ** -0.5
        for name, value in _torchvision_layers().state_dict().items()
    }


@pytest.fixture(scope="module")
def backbone(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "alexnet.safetensors"
    save_file(weights, path)
    return path


def _expected(weights: Weights, output: Tensor, target: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """torchmetrics' own LPIPS, with the layers that it would take from torchvision."""
    layers = _torchvision_layers()
    layers.load_state_dict({name.removeprefix("features."): value for name, value in weights.items()})
    monkeypatch.setattr(oracle, "_get_tv_model_features", lambda net, pretrained: layers)
    network = oracle._NoTrainLpips(net="alex")
    with torch.no_grad():
        distance: Tensor = network(output.expand(-1, 3, -1, -1), target.expand(-1, 3, -1, -1), normalize=True)
    return distance.flatten()


def _pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    target = torch.rand(3, 1, height, width, generator=generator)
    return (target + 0.2 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (57, 91)])
def test_it_equals_torchmetrics(
    size: tuple[int, int], weights: Weights, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, target = _pair(*size)
    result = load_lpips(backbone)(output, target)
    assert result.shape == (3,)
    torch.testing.assert_close(result, _expected(weights, output, target, monkeypatch), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.real
def test_it_equals_torchmetrics_on_radiographs(
    real_data: Path, lpips_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted((real_data / "nih256").glob("*.png"))[:4]
    pixels = np.stack([np.asarray(Image.open(path).convert("L"), dtype=np.float32) for path in paths])
    target = torch.from_numpy(pixels)[:, None] / 255
    noise = 0.1 + 0.2 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    output = (target + noise).clamp(0, 1)
    result = load_lpips(lpips_backbone)(output, target)
    torch.testing.assert_close(result, _expected(load_file(lpips_backbone), output, target, monkeypatch))
    # Noise of std 0.2 leaves radiographs far apart, unlike any denoised image.
    assert (result > 0.5).all()


@pytest.mark.real
def test_torchvisions_convolutions_are_told_from_altered_ones(lpips_backbone: Path, tmp_path: Path) -> None:
    assert load_lpips(lpips_backbone).published
    weights = load_file(lpips_backbone)
    weights["features.10.bias"][0] += 1e-4
    save_file(weights, tmp_path / "altered.safetensors")
    assert not load_lpips(tmp_path / "altered.safetensors").published


def test_a_backbone_with_values_that_are_not_finite_is_refused(weights: Weights, tmp_path: Path) -> None:
    damaged = {**weights, "features.3.bias": torch.full((192,), torch.nan)}
    save_file(damaged, tmp_path / "damaged.safetensors")
    with pytest.raises(DataError, match=r"damaged\.safetensors is damaged: features\.3\.bias"):
        load_lpips(tmp_path / "damaged.safetensors")


def test_equal_images_are_no_distance_apart_and_order_does_not_matter(backbone: Path) -> None:
    network, (output, target) = load_lpips(backbone), _pair(48, 48)
    assert (network(target, target) == 0).all()
    torch.testing.assert_close(network(output, target), network(target, output))


def test_the_input_has_a_gradient_and_the_weights_have_none(backbone: Path) -> None:
    network, (output, target) = load_lpips(backbone), _pair(48, 48)
    network(output.requires_grad_(), target).sum().backward()
    assert output.grad is not None
    assert output.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_loading_leaves_the_global_generator_alone(backbone: Path) -> None:
    before = torch.get_rng_state()
    load_lpips(backbone)
    assert torch.equal(torch.get_rng_state(), before)


def test_torchvisions_own_file_is_read(weights: Weights, backbone: Path, tmp_path: Path) -> None:
    path = tmp_path / "alexnet.pth"
    torch.save({**weights, "classifier.1.weight": torch.zeros(2, 2)}, path)
    output, target = _pair(40, 40)
    assert torch.equal(load_lpips(path)(output, target), load_lpips(backbone)(output, target))


def test_a_shape_that_it_cannot_score_is_named(backbone: Path) -> None:
    network = load_lpips(backbone)
    with pytest.raises(UsageError, match="too small"):
        network(torch.zeros(1, 1, 31, 64), torch.zeros(1, 1, 31, 64))
    with pytest.raises(UsageError, match="grey"):
        network(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was executed')",)


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "empty", "text", "truncated", "list", "other", "shape", "pickle"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_backbone_is_named(
    kind: str, suffix: str, weights: Weights, backbone: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    match kind:
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "text":
            path.write_text("not weights at all\n" * 20)
        case "truncated":
            torch.save(weights, path)
            path.write_bytes((backbone if suffix == ".safetensors" else path).read_bytes()[:5000])
        case "list":
            torch.save([1, 2], path)
        case "other":
            save_file({"conv.weight": torch.zeros(3)}, path)
        case "shape":
            save_file({**weights, "features.0.weight": torch.zeros(64, 1, 11, 11)}, path)
        case "pickle":
            torch.save({"features.0.weight": _Harmful()}, path)
    with pytest.raises(DataError) as caught:
        load_lpips(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class _Server(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200 if self.path.endswith("alexnet.pth") else 404)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def served(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ThreadingHTTPServer, Path]]:
    """A server of the backbone in torchvision's place, and the file that the cache would hold."""
    path = tmp_path / "served.pth"
    torch.save(weights, path)
    _Server.body = path.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(lpips_module, "BACKBONE_URL", f"http://127.0.0.1:{server.server_port}/alexnet.pth")
    monkeypatch.setattr(lpips_module, "BACKBONE_SHA256", hashlib.sha256(_Server.body).hexdigest()[:8])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    yield server, tmp_path / "cache/veilray/alexnet.pth"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_is_kept_and_used_without_asking_again(served: tuple[ThreadingHTTPServer, Path]) -> None:
    _, cached = served
    assert isinstance(load_lpips(None, download=True), LPIPS)
    assert cached.read_bytes() == _Server.body
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]
    _Server.body = b""
    assert isinstance(load_lpips(None), LPIPS)


def test_a_damaged_copy_in_the_cache_is_fetched_again(served: tuple[ThreadingHTTPServer, Path]) -> None:
    _, cached = served
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a file")
    load_lpips(None, download=True)
    assert cached.read_bytes() == _Server.body


def test_a_download_with_another_digest_is_not_kept(
    served: tuple[ThreadingHTTPServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cached = served
    monkeypatch.setattr(lpips_module, "BACKBONE_SHA256", "0badd1e5")
    with pytest.raises(LpipsUnavailable, match="digest"):
        load_lpips(None, download=True)
    assert list(cached.parent.iterdir()) == []


@pytest.mark.parametrize("where", ["http://127.0.0.1:{port}/nothing", "http://127.0.0.1:9/alexnet.pth"])
def test_a_failed_download_gives_the_reason(
    where: str, served: tuple[ThreadingHTTPServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lpips_module, "BACKBONE_URL", where.format(port=served[0].server_port))
    with pytest.raises(LpipsUnavailable, match="--lpips-backbone FILE"):
        load_lpips(None, download=True)


def test_without_a_file_nothing_is_fetched_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(LpipsUnavailable, match="no AlexNet backbone"):
        load_lpips(None)
    assert list(tmp_path.iterdir()) == []


def test_heads_that_are_not_there_give_the_reason(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LpipsUnavailable, match="torchmetrics"):
        load_lpips(backbone)
