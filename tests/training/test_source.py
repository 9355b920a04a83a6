"""Where weights come from: paths, and names of networks that ship, never mistaken for each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.models.shipped_model import NOISE, ship

from veilray.errors import RunError, UsageError
from veilray.inference.denoiser import Denoiser
from veilray.models.shipped import find
from veilray.training.source import open_weights


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped networks that holds `default`, and another folder to work in."""
    folder = tmp_path / "shipped"
    ship(folder)
    monkeypatch.setattr(find, "FOLDER", folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_a_name_gives_the_network_of_the_package(shipped: Path) -> None:
    by_name = Denoiser.load("default", device="cpu")
    by_path = Denoiser.load(shipped / "default.safetensors", device="cpu")
    assert by_name.noise == by_path.noise == NOISE
    assert by_name.origin == by_path.origin
    image = np.random.default_rng(0).random((20, 24), dtype=np.float32)
    np.testing.assert_array_equal(by_name(image), by_path(image))


def test_an_unknown_name_lists_those_that_ship(shipped: Path) -> None:
    for name in ("slow", "shipped:slow"):
        with pytest.raises(UsageError, match="what ships is default"):
            open_weights(name)


def test_a_path_of_the_same_name_is_no_guess(shipped: Path) -> None:
    Path("default").mkdir()
    with pytest.raises(UsageError, match=r"\./default or shipped:default"):
        open_weights("default")
    assert open_weights("shipped:default").noise == NOISE
    for path in ("./default", Path("default")):
        with pytest.raises(RunError, match="holds no run"):
            open_weights(path)


def test_altered_weights_are_refused(shipped: Path) -> None:
    weights = shipped / "default.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    with pytest.raises(RunError, match="SHA-256"):
        Denoiser.load("default", device="cpu")
