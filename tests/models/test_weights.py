"""Weights files: a round trip, and a clear line for every file that is not what was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from veilray.errors import RunError
from veilray.models.build import build_model
from veilray.models.config import ModelConfig
from veilray.models.weights import load_model, load_weights, save_weights
from veilray.obfuscation.config import NoiseConfig

CONFIGS = [
    ModelConfig(width=4, depth=3),
    ModelConfig(name="unetpp", width=4, depth=2, norm="group", residual=True, deep_supervision=True),
    ModelConfig(name="attention_unet", width=4, depth=3, inputs="image+mean"),
    ModelConfig(name="nafnet", width=4, depth=3, residual=True, inputs="image+mean+std", fold=4),
    ModelConfig(name="restormer", width=4, depth=2, residual=True),
    ModelConfig(name="dncnn", width=4, layers=4),
    ModelConfig(name="tnrd", width=4, stages=2),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound weights file of a small U-Net."""
    save_weights(tmp_path / "weights.safetensors", build_model(CONFIGS[0]))
    return tmp_path / "weights.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_round_trip(config: ModelConfig, tmp_path: Path) -> None:
    model = build_model(config).to(memory_format=torch.channels_last)
    model(torch.rand(2, config.channels_in, 16, 16))  # moves the running statistics, which must travel too
    noise = NoiseConfig(mean=0.05, std=(0.1, 0.2))
    save_weights(tmp_path / "folder" / "a.safetensors", model, noise=noise)
    state = torch.get_rng_state()
    again = load_model(tmp_path / "folder" / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert again.config == config
    assert not again.training
    x = torch.rand(1, config.channels_in, 16, 16)
    torch.testing.assert_close(again(x), model.eval().to(memory_format=torch.contiguous_format)(x), rtol=0, atol=1e-6)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert all(parameter.requires_grad for parameter in again.parameters())
    weights = load_weights(tmp_path / "folder" / "a.safetensors", expected=config)
    assert weights.noise == noise
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["a.safetensors"]


def test_header_says_what_the_file_is(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert header["format"] == "veilray-weights"
    assert header["schema_version"] == "1"
    assert ModelConfig.model_validate(json.loads(header["model"])) == CONFIGS[0]
    assert load_weights(path).noise is None


def test_another_model_is_named_next_to_the_one_asked_for(path: Path) -> None:
    asked = ModelConfig(name="unetpp", width=8, depth=3, norm="group")
    with pytest.raises(RunError) as caught:
        load_weights(path, expected=asked)
    message = str(caught.value)
    assert "unet (width 4, depth 3)" in message
    assert "unetpp (width 8, depth 3, norm group)" in message
    assert "\n" not in message


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_a_file_cut_short_is_refused(path: Path, kept: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(RunError, match="cut short"):
        load_weights(path)


@pytest.mark.parametrize("content", [b"not a model", b"PK\x03\x04" + bytes(200), bytes(64)])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="not a whole safetensors file"):
        load_model(tmp_path / "x.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"absent.* is missing"):
        load_weights(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "pt"}, "is not a veilray-weights file of Veilray's"),
        ({"schema_version": "2"}, "schema version 2"),
        ({"model": json.dumps({"name": "transformer"})}, "does not know"),
        ({"model": "{"}, "does not know"),
        ({"noise": json.dumps({"std": -1})}, "does not know"),
        ({"model": ModelConfig(width=8, depth=3).model_dump_json()}, "do not fit"),
        ({"model": ModelConfig(width=4, depth=2).model_dump_json()}, "do not fit"),
    ],
)
def test_a_header_that_lies_is_refused(path: Path, change: dict[str, str], words: str) -> None:
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file(load_file(path), path, metadata={**header, **change})
    with pytest.raises(RunError, match=words):
        load_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["weight", "running_var"])
def test_weights_that_are_not_finite_are_refused(path: Path, kind: str, value: float) -> None:
    model = load_model(path)
    name = next(name for name in model.state_dict() if name.endswith(kind))
    with torch.no_grad():
        model.state_dict()[name].view(-1)[-1] = value
    save_weights(path, model)
    with pytest.raises(RunError, match=rf"not finite in 1 of its tensors \({name} first\)"):
        load_weights(path)


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("veilray.models.tensors.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_weights(path, build_model(CONFIGS[1]))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_networks_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Linear"):
        save_weights(tmp_path / "x.safetensors", torch.nn.Linear(1, 1))
    assert not list(tmp_path.iterdir())
