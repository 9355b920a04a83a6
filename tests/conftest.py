"""What every test shares: where the real radiographs are, fake runs, and one thread for results that repeat."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from veilray.evaluation.results import ImageScore, Summary, write_results
from veilray.files import write_json
from veilray.metrics.statistics import clustered_bootstrap
from veilray.training.config import RunConfig
from veilray.training.run import EpochRecord, RunFolder

torch.set_num_threads(1)
# The same examples every time, however long the machine takes over one.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")


def _real(part: str) -> Path:
    root = os.environ.get("VEILRAY_REAL_DATA")
    if not root:
        pytest.skip("VEILRAY_REAL_DATA is not set: this test needs real radiographs")
    path = Path(root) / part
    if not path.exists():
        pytest.skip(f"VEILRAY_REAL_DATA holds no {part}")
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real radiographs: nih256, nih1024, hannover256, dicom."""
    return _real("data")


@pytest.fixture(scope="session")
def lpips_backbone() -> Path:
    """AlexNet's convolutions as safetensors."""
    return _real("weights/alexnet_features.safetensors")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder as train and evaluate leave it, with scores drawn from a seed: make_run(name, seed=1)."""
    return _run_maker(tmp_path)


@pytest.fixture(scope="module")
def make_module_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """As make_run, for runs that the tests of a module share."""
    return _run_maker(tmp_path_factory.mktemp("runs"))


def _run_maker(root: Path) -> Callable[..., Path]:
    def make(name: str, *, gain: float = 0.0, images: int = 24, **options: Any) -> Path:
        config = RunConfig.model_validate(
            {key: value for key, value in options.items() if key in RunConfig.model_fields}
        )
        folder = RunFolder.create(root / name, config)
        scores = _scores(config, gain, images, options)
        _write_training(folder, config, gain, options)
        summary = Summary.model_validate(_summary(config, scores) | options.get("summary", {}))
        write_results(folder.path, summary, scores)
        return folder.path

    return make


def _scores(config: RunConfig, gain: float, images: int, options: dict[str, Any]) -> list[ImageScore]:
    shared, own = np.random.default_rng(5), np.random.default_rng([config.seed, round(1000 * gain)])
    difficulty = shared.normal(0.0, 1.0, images)
    each = options.get("images_per_patient", 3)
    floor = -20 * np.log10(config.noise.std_range[1])
    rows = []
    for method in options.get("methods", ("noisy", "model")):
        lift = {"noisy": 0.0, "model": 14.0 + gain}.get(method, 9.0)
        psnr = floor + lift + difficulty * (method != "noisy") + own.normal(0.0, 0.1, images)
        for index, value in enumerate(psnr):
            ssim = 1 / (1 + np.exp(-(value - 22) / 4))
            rows.append(
                ImageScore(
                    image_id=f"{index // each:08d}_{index % each:03d}",
                    patient_id=f"{index // each:08d}",
                    method=method,
                    psnr=float(value),
                    ssim=float(ssim),
                    ssim_3x3=float(ssim) - 0.02,
                    lpips=0.9 - 0.8 * float(ssim) if options.get("lpips", True) else None,
                    psnr_unclamped=float(value) - 0.1 if config.evaluate.unclamped_psnr else None,
                )
            )
    return rows


def _summary(config: RunConfig, scores: list[ImageScore]) -> dict[str, Any]:
    def interval(method: str, metric: str) -> dict[str, float] | None:
        rows = [row for row in scores if row.method == method]
        values = [getattr(row, metric) for row in rows]
        if None in values:
            return None
        patients = [row.patient_id for row in rows]
        return clustered_bootstrap(np.array(values), patients, resamples=200, seed=3, confidence=0.95).model_dump()

    methods = list(dict.fromkeys(row.method for row in scores))
    metrics = ("psnr", "ssim", "ssim_3x3", "lpips", "psnr_unclamped")
    has_lpips = all(row.lpips is not None for row in scores)
    return {
        "split": "test",
        "n_images": len({row.image_id for row in scores}),
        "n_patients": len({row.patient_id for row in scores}),
        "cohort": "data/cohort",
        "cohort_digest": "c0ffee" * 10 + "abcd",
        "noise": config.noise,
        "test_noise_seed": config.evaluate.noise_seed,
        "confidence": 0.95,
        "resamples": 200,
        "bootstrap_seed": 3,
        "methods": {method: {metric: interval(method, metric) for metric in metrics} for method in methods},
        "notes": [] if has_lpips else ["LPIPS was not computed: no AlexNet backbone; name one with --lpips-backbone."],
        "seconds_per_image": dict.fromkeys(methods, 0.01),
        "device": "CPU, 2 threads",
    }


def _write_training(folder: RunFolder, config: RunConfig, gain: float, options: dict[str, Any]) -> None:
    environment = {
        "veilray": "0.1.0",
        "torch": "2.13.0",
        "python": "3.11.9",
        "platform": "Linux-6.1-x86_64",
        "device": "cpu",
        "device_name": "CPU, 2 threads",
        "threads": 2,
        "git_commit": "0123456789abcdef",
        "cohort": "data/cohort",
        "cohort_digest": "c0ffee" * 10 + "abcd",
        "n_train": 691,
        "n_validation": 86,
        "n_test": 87,
        "shared_patients": 0,
        "started": f"2026-01-0{config.seed % 9 + 1}T08:00:00+00:00",
        "parameters": 1_942_289,
    }
    write_json(folder.path / "environment.json", environment | options.get("environment", {}))
    noise = np.random.default_rng(config.seed)
    for epoch in range(1, options.get("epochs", 12) + 1):
        loss = 0.02 * 0.9**gain + 0.2 * np.exp(-epoch / 3) + 0.001 * noise.random()
        folder.append(
            EpochRecord(
                epoch=epoch,
                step=43 * epoch,
                train_loss=float(loss),
                validation_loss=float(loss),
                validation_psnr=float(20 - 8 * np.log10(loss)),
                learning_rate=1e-3,
                images_per_second=100.0,
                seconds=50.25 * epoch + config.seed,
            )
        )
