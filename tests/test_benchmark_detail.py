"""breaks.py and frontier.py measure what a closed form says; pages show what their scripts recorded."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from tests.command_line import make_cohort

from veilray.errors import UsageError
from veilray.files import sha256_file
from veilray.images.radiograph import FloatImage
from veilray.models.nafnet import NAFNet
from veilray.models.weights import save_weights
from veilray.training.data import TrainingImages
from veilray.training.state import checkpoints

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def _identity(noisy: FloatImage, *, mean: float, std: float) -> FloatImage:
    return noisy - np.float32(mean)


def _blur(sigma: float) -> Any:
    def blurred(noisy: FloatImage, *, mean: float, std: float) -> FloatImage:
        smooth: FloatImage = gaussian_filter(noisy - np.float32(mean), sigma)
        return smooth

    return blurred


def test_noise_that_nobody_takes_away_is_left_and_a_blur_leaves_what_its_transfer_says(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    physics = script("breaks_physics")
    monkeypatch.setattr(physics, "PHANTOMS", 2)
    found = physics.noise_left(_identity, 0.1)
    assert found["share_left"] == pytest.approx([1.0, 1.0, 1.0])
    assert found["std_left"] == pytest.approx(found["std_before"])
    assert found["std_before"] == pytest.approx(0.1, abs=0.015)  # less where the clamp cut it off
    low, middle, high = physics.noise_left(_blur(1.0), 0.1)["share_left"]
    # A Gaussian's transfer, squared, is exp(-(2 pi f sigma)^2), at the frequencies between the bands.
    assert low > np.exp(-((2 * np.pi * 0.125) ** 2)) > middle > np.exp(-((2 * np.pi * 0.25) ** 2)) > high


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_the_edge_response_of_a_blur_is_its_own(script: Any, sigma: float) -> None:
    physics = script("breaks_physics")
    found = physics.edge(_blur(sigma), std=0.02, contrast=0.4)
    assert found["mtf50"] == pytest.approx(np.sqrt(2 * np.log(2)) / (2 * np.pi * sigma), rel=0.05)
    assert found["contrast_kept"] == pytest.approx(1.0, abs=0.02)
    assert physics.edge(None, std=0.0, contrast=0.1)["mtf50"] > 0.5


@pytest.mark.slow
def test_contrast_is_kept_by_who_does_nothing_and_lost_by_who_blurs(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    physics = script("breaks_physics")
    monkeypatch.setattr(physics, "PHANTOMS", 2)
    monkeypatch.setattr(physics, "DRAWS", 2)
    untouched = {one["detail"]: one["mean"] for one in physics.contrasts(_identity, 0.02)}
    blurred = {one["detail"]: one["mean"] for one in physics.contrasts(_blur(4.0), 0.02)}
    assert set(untouched) == {"ribs", "nodule of 6 mm", "nodule of 10 mm", "nodule of 20 mm"}
    for name, kept in untouched.items():
        assert kept == pytest.approx(1.0, abs=0.1)
        assert blurred[name] < kept - 0.2
    assert blurred["nodule of 6 mm"] < blurred["nodule of 10 mm"] < blurred["nodule of 20 mm"]


def test_a_posterior_mean_invents_nothing(script: Any) -> None:
    frontier = script("frontier")
    generator = np.random.default_rng(0)
    clean = generator.standard_normal((256, 256))
    noisy = clean + generator.standard_normal((256, 256))
    for share, wanted in ((0.5, 0.0), (1.0, 1.0), (0.25, 0.25 * 0.25 * 2 - 0.25)):
        found = frontier.inventions((share * noisy).astype(np.float32), clean.astype(np.float32))
        for name in frontier.BANDS:
            assert found[f"unsupported, {name}"] == pytest.approx(wanted, abs=0.06)


def test_blobs_that_come_and_go_are_counted(script: Any) -> None:
    frontier = script("frontier")
    clean, output = (np.zeros((64, 64), dtype=np.float32) for _ in range(2))
    rows, columns = np.mgrid[:64, :64]

    def spot(row: int, column: int) -> FloatImage:
        found: FloatImage = (0.5 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4.0)).astype(np.float32)
        return found

    clean += spot(12, 12) + spot(40, 40)
    output += spot(12, 14) + spot(50, 10) + spot(10, 50)
    found = frontier.inventions(output, clean)
    assert (found["blobs invented"], found["blobs lost"]) == (2.0, 1.0)


@pytest.mark.slow
def test_objectives_begin_from_one_start_and_their_last_weights_are_scored(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frontier = script("frontier")
    monkeypatch.setattr("veilray.inference.prepared.pick_precision", lambda *_: torch.float32)  # names stay
    monkeypatch.setattr(frontier, "COMMON", [*frontier.COMMON, "train.crop=32", "train.batch_size=8"])
    network = NAFNet(width=4, depth=2, residual=True, inputs="image+mean", fold=2)
    save_weights(tmp_path / "start.safetensors", network, noise=frontier.NOISE)
    options = argparse.Namespace(
        data=make_cohort(tmp_path),
        out=tmp_path / "runs",
        start=tmp_path / "start.safetensors",
        epochs=2,
        lpips_backbone=None,
        split="test",
    )
    runs = [frontier._trained(name, options) for name in ("L1", "adversarial, 0.02")]
    digest = sha256_file(options.start)
    assert {run.config().train.start_sha256 for run in runs} == {digest}
    for run in runs:
        last = load_file(checkpoints(run.checkpoints)[-1])
        for name, value in frontier._last(run).network.module.state_dict().items():
            assert torch.equal(value.contiguous(), last[f"average/{name}"].contiguous())
    # What is finished is not trained again; what began from other weights does not go on.
    before = runs[0].epochs()
    assert frontier._trained("L1", options).epochs() == before
    images = TrainingImages.open(options.data, runs[0].config())
    found = frontier.measured("L1", frontier._last(runs[0]), images, lambda *_: torch.tensor(0.25), split="test")
    assert found["lpips"]["mean"] == 0.25
    assert {"psnr", "ssim", "blobs invented", "unsupported, 2 to 4 px"} <= found.keys()
    save_weights(options.start, NAFNet(width=4, depth=2, residual=True, inputs="image+mean", fold=2), noise=None)
    with pytest.raises(UsageError, match="begun with another configuration"):
        frontier._trained("L1", options)


@pytest.mark.slow
def test_no_patient_that_was_trained_on_is_scored(script: Any, real_data: Path) -> None:
    breaks = script("breaks")
    split = (ROOT / "benchmarks" / "splits" / "nih256.csv").read_text(encoding="utf-8").splitlines()[1:]
    trained = {line.partition("_")[0] for line in split if not line.endswith(",test")}
    for name in ("nih256", "nih1024"):
        cases = breaks._cases(real_data, name, 10)
        assert cases
        assert len({case.patient for case in cases}) == len(cases)
        assert not {case.patient for case in cases} & trained


@pytest.mark.parametrize(
    ("name", "page", "pages"),
    [
        ("rivals", "comparison", "side_by_side_pages"),
        ("rival_whole", "comparison", "side_by_side_pages"),
        ("specialists", "comparison", "side_by_side_pages"),
        ("inventions", "frontier", "frontier_pages"),
    ],
)
def test_a_table_holds_its_record_or_says_that_there_is_none(
    script: Any, tmp_path: Path, name: str, page: str, pages: str
) -> None:
    text = (ROOT / "docs" / "explanation" / f"{page}.md").read_text(encoding="utf-8")
    record = RESULTS / f"{name}.json"
    if not record.exists():
        assert f"made by benchmarks/{name}.py -->\nNot on record yet" in text
        return
    copy = tmp_path / "page.md"
    copy.write_text(text, encoding="utf-8")
    getattr(script(pages), f"write_{name}")(json.loads(record.read_text(encoding="utf-8")), copy)
    assert copy.read_text(encoding="utf-8") == text


def _run(epochs: int, minutes: float) -> dict[str, float]:
    return {"epochs": epochs, "minutes_of_two_cores": minutes}


def _mean(value: float) -> dict[str, float]:
    return {"mean": value, "low": value - 0.25, "high": value + 0.25}


def _breaks_record() -> dict[str, Any]:
    network = {"psnr": _mean(29.5), "ssim": _mean(0.85)}
    condition = {
        "group": "picture",
        "name": "upside down",
        "images": 7,
        "methods": {"noisy": {"psnr": _mean(14.0)}, "network": network, "tv": {"psnr": _mean(29.0)}},
        "network_minus_tv": _mean(0.5),
    }
    edge = {"std": 0.2, "contrast": 0.1, "mtf50": 0.125, "contrast_kept": 0.5}
    left = {"std": 0.2, "std_left": 0.02, "std_before": 0.18, "bands": [[0.0, 0.25], [0.25, 0.5]]}
    physics = {
        "noise_left": {name: [{**left, "share_left": [0.2, 0.01]}] for name in ("network", "tv")},
        "edge": {"clean": [{**edge, "mtf50": 0.5}], "network": [edge], "tv": [edge]},
        "contrast": {name: [{"detail": "ribs", "std": 0.2, **_mean(0.75)}] for name in ("network", "tv")},
    }
    return {
        "hardware": {"device": "a processor", "date": "2026-01-01"},
        "model": "default",
        "weights_sha256": "0123456789abcdef",
        "sets": {"nih256": {"images": 7}},
        "conditions": [condition],
        "physics": physics,
    }


def test_what_breaks_is_told_as_it_was_recorded(script: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "explanation" / "where-it-breaks.md").read_text(encoding="utf-8"))
    script("breaks_pages").write_page(_breaks_record(), page)
    text = page.read_text(encoding="utf-8")
    for line in (
        "weights 0123456789ab",
        "| picture | upside down | 7 | 14.00 | 29.50 [29.25, 29.75] | 0.850 | not computed | 29.00 | +0.50 [+0.25",
        "| 0.2 | total variation | 0.180 | 0.0200 | 20 % | 1 % |",
        "| 0.2 | 0.1 | the network | 0.125 | 0.500 | 50 % |",
        "| 0.2 | ribs | total variation | 0.75 [0.50, 1.00] |",
    ):
        assert line in text
    assert "Not on record yet" not in text


@pytest.mark.slow
def test_the_frontier_is_told_as_it_was_recorded(script: Any, tmp_path: Path) -> None:
    scores = {"psnr": _mean(29.5), "ssim": _mean(0.85), "lpips": _mean(0.5), "seconds": 90.0}
    found = {**scores, "unsupported, 2 to 4 px": _mean(-0.25), "blobs invented": _mean(3.0), "blobs lost": _mean(9.0)}
    record = {
        "hardware": {"device": "a processor", "date": "2026-01-01"},
        "start": "fast",
        "start_sha256": "0123456789abcdef",
        "split": "test",
        "epochs": 2,
        "steps": 86,
        "images": 119,
        "patients": 78,
        "noise": {"mean": 0.1, "std": 0.2},
        "objectives": {"L1": found, "perceptual, 0.02": {**found, "lpips": _mean(0.4)}},
    }
    page, figure = tmp_path / "page.md", tmp_path / "figure.svg"
    page.write_text((ROOT / "docs" / "explanation" / "frontier.md").read_text(encoding="utf-8"))
    script("frontier_pages").write_page(record, page, figure)
    text = page.read_text(encoding="utf-8")
    assert "2 epochs of 43 steps" in text
    assert "| -20 % | 1.5 |" in text
    assert "| L1 | -0.250 [-0.500, +0.000] | 3.0 [2.8, 3.2] | 9.0 [8.8, 9.2] |" in text
    assert "Not on record yet" not in text.partition("## What `default` invents")[0]
    assert "perceptual, 0.02" in figure.read_text(encoding="utf-8")


def test_what_default_invents_is_told_as_it_was_recorded(script: Any, tmp_path: Path) -> None:
    found = {"psnr": _mean(32.5), "ssim": _mean(0.85), "unsupported, 2 to 4 px": _mean(-0.25)}
    found |= {"blobs invented": _mean(3.0), "blobs lost": _mean(9.0)}
    record = {
        "hardware": {"device": "a processor", "date": "2026-01-01"},
        "split": "test",
        "mean": 0.1,
        "images": 119,
        "patients": 78,
        "levels": {
            "0.2": {
                "default": {**found, "lpips": _mean(0.5)},
                "the same sitting, L1 alone": {**found, "lpips": _mean(0.8)},
            }
        },
    }
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "explanation" / "frontier.md").read_text(encoding="utf-8"))
    script("frontier_pages").write_inventions(record, page)
    text = page.read_text(encoding="utf-8")
    rest = "-0.250 [-0.500, +0.000] | 3.0 [2.8, 3.2] | 9.0 [8.8, 9.2] |"
    for line in (
        "119 test images of 78 patients, mean 0.1",
        f"| 0.2 | `default` | 32.50 [32.25, 32.75] | 0.5000 [0.2500, 0.7500] |  | {rest}",
        f"| 0.2 | the same sitting, L1 alone | 32.50 [32.25, 32.75] | 0.8000 [0.5500, 1.0500] | -38 % | {rest}",
    ):
        assert line in text


def test_the_recipe_is_told_as_it_was_recorded(script: Any, tmp_path: Path) -> None:
    runs = [{"epochs": 4, "minutes_of_two_cores": 0.4}, {"epochs": 5, "minutes_of_two_cores": 0.5}]
    lost = {**_mean(-0.5), "by_seed": [-0.25, -0.75]}
    record = {
        "hardware": {"device": "a processor", "date": "2026-01-01"},
        "minutes_of_two_cores": 0.5,
        "split": "test",
        "images": 119,
        "patients": 78,
        "noise": {"mean": 0.1, "std": 0.2},
        "self_ensemble": {"psnr": _mean(0.25), "ssim": _mean(0.0)},
        "recipes": {
            "reference": {"metrics": {"psnr": _mean(28.5), "ssim": _mean(0.5)}, "differences": {}, "runs": runs},
            "fixed_noise": {"metrics": {}, "differences": {"psnr": lost, "ssim": None}, "runs": runs[:1]},
        },
    }
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "explanation" / "recipe.md").read_text(encoding="utf-8"))
    script("recipe_pages").write_page(record, page)
    text = page.read_text(encoding="utf-8")
    for line in (
        "**Each run was given 30 seconds of two cores**",
        "| **the reference** | 28.50 [28.25, 28.75] | 0.5000 [0.2500, 0.7500] | – | 4 to 5 | 24 to 30 |  |",
        "| fixed noise | -0.50 [-0.75, -0.25] | – | – | 4 | 24 | -0.25, -0.75 |",
        "| self-ensemble at test | +0.25 [+0.00, +0.50] | +0.0000 [-0.2500, +0.2500] | – |  |  |  |",
    ):
        assert line in text
    assert "Not on record yet" not in text


def test_what_one_network_for_all_costs_is_told_as_it_was_recorded(script: Any, tmp_path: Path) -> None:
    metrics = {"psnr": _mean(32.5), "ssim": _mean(0.5), "lpips": None}
    record = {
        "hardware": {"device": "a processor", "date": "2026-01-01"},
        "minutes_of_two_cores": 3.0,
        "split": "test",
        "mean": 0.1,
        "seeds": [1],
        "nih": {
            "0.2": {
                "images": 119,
                "patients": 78,
                "metrics": {"default": metrics, "every_noise": metrics, "only_0.2": metrics},
                "against": "every_noise",
                "differences": {"default": {"psnr": _mean(-0.5)}, "only_0.2": {"psnr": _mean(0.25)}},
            }
        },
        "hannover": {
            "0.2": {
                "images": 60,
                "patients": 20,
                "metrics": {"default": metrics, "on_hannover": metrics, "alone_at_hannover": metrics},
                "against": "default",
                "differences": {"on_hannover": {"psnr": _mean(0.5)}, "alone_at_hannover": {"psnr": _mean(-0.75)}},
            }
        },
        "runs": {
            "every_noise": [_run(6, 2.9)],
            "only_0.2": [_run(7, 3.0)],
            "on_hannover": [_run(30, 2.95)],
            "alone_at_hannover": [_run(70, 14.5)],
        },
    }
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "explanation" / "comparison.md").read_text(encoding="utf-8"))
    script("side_by_side_pages").write_specialists(record, page)
    text = page.read_text(encoding="utf-8")
    scores = "32.50 [32.25, 32.75] | 0.5000 [0.2500, 0.7500] | –"
    for line in (
        "119 test images of 78 patients of NIH, 60 test images of 20 patients of Hannover; mean 0.1",
        "one seed. a processor, 2026-01-01. Fine-tuned networks had 174 to 180 seconds of two cores",
        "(6 to 7 epochs of NIH, 30 epochs of Hannover), the one from scratch 870 (70 epochs).",
        f"| NIH | 0.2 | fine-tuned, every noise | {scores} | – | – | – |",
        f"| NIH | 0.2 | fine-tuned, this noise alone | {scores} | +0.25 [+0.00, +0.50] | – | – |",
        f"| Hannover | 0.2 | fine-tuned, at Hannover | {scores} | +0.50 [+0.25, +0.75] | – | – |",
        f"| Hannover | 0.2 | from scratch, at Hannover alone | {scores} | -0.75 [-1.00, -0.50] | – | – |",
    ):
        assert line in text


def test_rivals_are_told_as_they_were_recorded(script: Any, tmp_path: Path) -> None:
    metrics = {"psnr": _mean(30.5), "ssim": None, "lpips": _mean(0.5)}
    level = {
        "images": 119,
        "patients": 78,
        "metrics": dict.fromkeys(("default", "unet", "dncnn3"), metrics),
        "against": "default",
        "differences": {"unet": {"psnr": _mean(-3.0)}, "dncnn3": {"psnr": _mean(-1.0), "lpips": _mean(0.25)}},
    }
    record = {
        "hardware": {"device": "a processor", "date": "2026-01-01"},
        "minutes_of_two_cores": 10.0,
        "split": "test",
        "mean": 0.1,
        "seeds": [1, 2],
        "nih": {"0.1": level},
        "runs": {"unet_0.1": [_run(6, 9.9), _run(5, 8.0)], "unet_0.2": [_run(9, 9.0)], "dncnn3": [_run(30, 4.0)]},
    }
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "explanation" / "comparison.md").read_text(encoding="utf-8"))
    script("side_by_side_pages").write_rivals(record, page)
    text = page.read_text(encoding="utf-8")
    scores = "30.50 [30.25, 30.75] | – | 0.5000 [0.2500, 0.7500]"
    for line in (
        "2 seeds. a processor, 2026-01-01. Seconds of training are of two cores; `default` had more.",
        f"| 0.1 | `default` | – | {scores} | – | – | – |",
        f"| 0.1 | U-Net, width 32 | 5 to 6 (480 to 594) | {scores} | -3.00 [-3.25, -2.75] | – | – |",
        f"| 0.1 | DnCNN-3, every noise | 30 (240) | {scores} | -1.00 [-1.25, -0.75] | – | +0.2500 [+0.0000, +0.5000] |",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("name", "page", "tables"),
    [
        ("breaks", "where-it-breaks", 4),
        ("frontier", "frontier", 2),
        ("recipe", "recipe", 1),
    ],
)
def test_a_page_holds_its_record_or_says_that_there_is_none(
    script: Any, tmp_path: Path, name: str, page: str, tables: int
) -> None:
    text = (ROOT / "docs" / "explanation" / f"{page}.md").read_text(encoding="utf-8")
    record = RESULTS / f"{name}.json"
    if not record.exists():
        assert text.count("Not on record yet") == tables
        return
    copy = tmp_path / "page.md"
    copy.write_text(text, encoding="utf-8")
    more = {"figure": tmp_path / "figure.svg"} if name == "frontier" else {}
    script(f"{name}_pages").write_page(json.loads(record.read_text(encoding="utf-8")), copy, **more)
    assert copy.read_text(encoding="utf-8") == text
