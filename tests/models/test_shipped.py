"""Networks of the package: found by name, checked against their cards, and what really ships fits its card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.models.shipped_model import ship

from veilray.errors import RunError, UsageError
from veilray.files import sha256_file
from veilray.models.shipped import find
from veilray.models.shipped.card import Card
from veilray.models.shipped.find import checked_weights, shipped_model, shipped_names
from veilray.models.weights import load_weights


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(find, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_names_begin_with_the_default(folder: Path) -> None:
    assert shipped_names() == []
    for name in ("fast", "default", "careful"):
        ship(folder, name)
    assert shipped_names() == ["default", "careful", "fast"]
    assert shipped_model("fast").card.name == "fast"


def test_an_unknown_name_is_answered_with_those_that_ship(folder: Path) -> None:
    with pytest.raises(UsageError, match="none ships"):
        shipped_model("default")
    ship(folder, "fast")
    for name in ("slow", "../fast", "", "fast.json"):
        with pytest.raises(UsageError, match="what ships is fast"):
            shipped_model(name)


def test_weights_that_the_card_does_not_describe_are_refused(folder: Path) -> None:
    ship(folder)
    weights = folder / "default.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError, match="SHA-256"):
        checked_weights(shipped_model("default"))
    weights.unlink()
    with pytest.raises(RunError, match=r"default\.safetensors"):
        shipped_model("default")


@pytest.mark.parametrize(
    "change",
    [{"medical_device": True}, {"weights_sha256": "abc"}, {"config": {"seed": 1}}, {"more": 1}, {"schema_version": 2}],
)
def test_a_card_that_is_none_is_refused(folder: Path, change: dict[str, object]) -> None:
    ship(folder)
    card = json.loads((folder / "default.json").read_text())
    Card.model_validate(card)
    with pytest.raises(ValidationError):
        Card.model_validate(card | change)
    (folder / "default.json").write_text(json.dumps(card | change))
    with pytest.raises(RunError, match="no model card"):
        shipped_model("default")


def test_the_card_of_another_network_is_refused(folder: Path) -> None:
    ship(folder, "fast")
    for ending in ("json", "safetensors"):
        (folder / f"fast.{ending}").rename(folder / f"default.{ending}")
    with pytest.raises(RunError, match="not the card of"):
        shipped_model("default")


def test_the_networks_ship_and_are_small_enough_for_the_package() -> None:
    sizes = {name: shipped_model(name).weights.stat().st_size for name in shipped_names()}
    assert set(sizes) == {"default", "fast"}
    assert 1_000_000 < sizes["default"] <= 8_000_000
    assert 500_000 < sizes["fast"] <= 2_000_000


@pytest.mark.slow
def test_whatever_ships_is_what_its_card_says() -> None:
    for name in shipped_names():
        model = shipped_model(name)
        weights = load_weights(checked_weights(model))
        assert model.weights.stat().st_size == model.card.weights_bytes
        assert sha256_file(model.weights) == model.card.weights_sha256
        assert model.card.config["model"] == weights.config.model_dump(mode="json")
        assert weights.noise is not None
