"""Configuration: presets, overrides, and messages that name the key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from veilray.errors import UsageError
from veilray.training.config import RunConfig, dump_config, load_config, preset_names

PRESETS = ["default", "dncnn", "dncnn3", "paper", "tnrd"]


def test_the_presets_that_ship() -> None:
    assert preset_names() == PRESETS


def test_a_folder_of_the_same_name_does_not_hide_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "paper").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("paper").noise.clip


def test_the_baselines_are_those_of_their_papers() -> None:
    models = {name: load_config(name).model for name in ("dncnn", "dncnn3", "tnrd")}
    assert [(model.name, model.width) for model in models.values()] == [("dncnn", 64), ("dncnn", 64), ("tnrd", 48)]
    assert (models["dncnn"].layers, models["dncnn3"].layers, models["tnrd"].stages) == (17, 20, 5)
    assert load_config("dncnn3").train.degradation == "three-tasks"


def test_the_paper_preset_is_the_published_protocol() -> None:
    config = load_config("paper")
    assert config.split.rule == "paper"
    assert (config.noise.mean, config.noise.std, config.noise.clip, config.noise.fresh) == (0.1, 0.2, True, False)
    assert (config.train.loss, config.train.optimizer, config.train.schedule) == ("l1", "adam", "constant")
    assert (config.train.learning_rate, config.train.epochs, config.train.batch_size) == (1e-3, 50, 16)
    assert (config.train.ema_decay, config.train.clip_norm, config.train.warmup_steps) == (0, 0, 0)
    assert (config.model.width, config.model.block) == (64, "conv-relu-conv-norm-relu")
    assert config.evaluate.unclamped_psnr


@pytest.mark.parametrize("name", PRESETS)
def test_a_dumped_configuration_reads_back_the_same(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["noise.std=[0.05, 0.4]", "seed=3"])
    (tmp_path / "config.toml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.toml") == config


def test_overrides() -> None:
    config = load_config("default", ["train.epochs=5", "model.name=unetpp", "noise.std=[0.1,0.3]", "noise.clip=false"])
    assert (config.train.epochs, config.model.name, config.noise.std) == (5, "unetpp", (0.1, 0.3))
    assert not config.noise.clip


@pytest.mark.parametrize(
    ("preset", "name", "built"),
    [
        ("default", "unetpp", {"width": 64, "depth": 5, "residual": True}),
        ("default", "nafnet", {"width": 32, "depth": 4, "residual": True}),
        ("default", "restormer", {"width": 24, "depth": 4, "residual": True}),
        ("default", "dncnn", {"width": 64, "layers": 17}),
        ("default", "tnrd", {"width": 48, "stages": 5}),
        ("dncnn", "tnrd", {"width": 48, "stages": 5}),
        ("tnrd", "dncnn", {"width": 64, "layers": 17}),
        ("dncnn3", "nafnet", {"width": 32, "depth": 4, "inputs": "image+mean"}),
        ("dncnn3", "dncnn", {"width": 64, "layers": 20, "inputs": "image+mean"}),
    ],
)
def test_another_network_takes_the_place_of_a_presets(preset: str, name: str, built: dict[str, object]) -> None:
    model = load_config(preset, [f"model.name={name}"]).model
    assert model.name == name
    assert model.options() == model.options() | built
    assert load_config(preset, [f"model.name={name}", "model.width=8"]).model.width == 8


def test_what_the_user_set_is_not_left_out_for_another_network(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="residual needs name"):
        load_config("default", ["model.residual=true", "model.name=dncnn"])
    file = tmp_path / "mine.toml"
    file.write_text('[model]\nname = "unet"\nwidth = 16\n')
    assert load_config(file, ["model.name=unetpp"]).model.width == 16
    file.write_text("[model]\nresidual = true\n")
    with pytest.raises(UsageError, match="residual needs name"):
        load_config(file, ["model.name=dncnn"])


def test_a_run_with_sizes_of_its_own_keeps_them(tmp_path: Path) -> None:
    config = load_config("default", ["model.name=nafnet", "model.width=64", "model.depth=5"])
    (tmp_path / "config.toml").write_text(dump_config(config))
    read = load_config(tmp_path / "config.toml")
    assert read == config
    assert (read.model.width, read.model.depth) == (64, 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=5", r"train\.epoch: unknown key"),
        ("trian.epochs=5", r"trian: unknown key"),
        ("train.epochs=many", r"train\.epochs: .*integer"),
        ("train.epochs=0", r"train\.epochs: .*greater"),
        ("train.epochs", "section.key=value"),
        ("seed.x=1", "seed is not a section"),
        ("noise.std=0", r"noise\.std"),
        ("noise.std=-0.2", r"noise\.std"),
        ("model.name=resnet", r"model\.name: .*unet"),
        ("train.loss=[1]", r"train\.loss: .*l1"),
        ("train.objective=[1]", r"train\.objective: .*auto"),
        ("model.deep_supervision=true", "unetpp"),
        ("train.weight_decay=0.1", None),
        ("launch.precision=fp8", r"launch\.precision"),
    ],
)
def test_mistakes_are_named(override: str, message: str | None) -> None:
    if message is None:
        assert load_config("default", [override]).train.weight_decay == 0.1
        return
    with pytest.raises(UsageError, match=message) as caught:
        load_config("default", [override])
    assert "\n" not in str(caught.value)


def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--set train\.epoch=5: train\.epoch: unknown key$"):
        load_config("default", ["seed=3", "train.epoch=5"])
    with pytest.raises(UsageError, match=r"^--set model\.fold=4: model: fold needs name"):
        load_config("default", ["model.fold=4", "train.epochs=5"])
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nepoch = 5\n")
    with pytest.raises(UsageError, match=rf"^--set train\.crop=-1: train\.crop: .*; {file}: train\.epoch: unknown"):
        load_config(file, ["train.crop=-1"])
    file.write_text("[model]\nfold = 4\n")
    with pytest.raises(UsageError, match=rf"^{file}: model: fold needs name"):
        load_config(file, ["model.width=8"])


def test_weight_decay_under_plain_adam_is_refused() -> None:
    with pytest.raises(UsageError, match="adamw"):
        load_config("paper", ["train.weight_decay=0.1"])


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="presets that ship: default, dncnn, dncnn3, paper, tnrd"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = = 3")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "new.toml").write_text("schema_version = 99")
    with pytest.raises(UsageError, match="schema version 99"):
        load_config(tmp_path / "new.toml")


def test_every_field_says_what_it_is() -> None:
    import inspect

    sections = [RunConfig, *(type(getattr(RunConfig(), name)) for name in RunConfig.model_fields)]
    for section in sections:
        if section in (int,):
            continue
        source = inspect.getsource(section)
        for name in section.model_fields:
            if section is RunConfig and name != "seed":
                continue
            line = source.index(f"    {name}:")
            assert '"""' in source[line:].split("\n    ")[1] or '"""' in source[line : line + 400], f"{section} {name}"


def test_the_page_on_training_has_every_key_with_its_defaults() -> None:
    page = Path(__file__).parents[2] / "docs/how-to/train-and-compare.md"
    rows = [line.strip("|\n").split("|") for line in page.read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    named = {}
    for keys, *cells, _ in rows:
        first, *others = re.findall("`([a-z0-9_.]+)`", keys)
        section = first.partition(".")[0]
        named |= {key: [] for key in [first, *(section + other for other in others)]}
        if not others:
            named[first] = [cell.strip() for cell in cells]
    values = _leaves(RunConfig())
    assert set(named) == set(values)
    presets = [values, *(_leaves(load_config(name)) for name in ("default", "paper"))]
    for key, cells in named.items():
        for cell, preset in zip(cells, presets, strict=False):
            shown = tomllib.loads(f"value = {cell}")["value"] if cell else values[key]
            assert shown == preset[key], key


def _leaves(config: BaseModel, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return found
