"""A small cohort and trained runs on it, shared by the tests that only read them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests.command_line import SMALL, done, make_cohort


def in_float32(patch: pytest.MonkeyPatch) -> None:
    """Let networks compute in float32 on processors with bf16 units, too, where scores are compared closely."""
    patch.setattr("veilray.inference.prepared.pick_precision", lambda *_: torch.float32)


@pytest.fixture(autouse=True)
def _scored_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    in_float32(monkeypatch)


@pytest.fixture(scope="session")
def scored_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 40 images of 20 patients, 32x32."""
    return make_cohort(tmp_path_factory.mktemp("scored"))


@pytest.fixture(scope="session")
def paper_run(scored_cohort: Path) -> Path:
    """A run under the paper's scoring (raw outputs too), with a range of noise, evaluated on the test images."""
    run = scored_cohort.parent / "run"
    more = ["--set", "evaluate.unclamped_psnr=true", "--set", "noise.std=[0.1, 0.3]"]
    done("train", "default", "--data", scored_cohort, "--out", run, *SMALL, *more)
    with pytest.MonkeyPatch.context() as patch:
        in_float32(patch)
        done("evaluate", run, "--data", scored_cohort, "--no-download")
    return run


@pytest.fixture
def own_paper_run(paper_run: Path, tmp_path: Path) -> Path:
    """A copy of `paper_run` that a test may change."""
    return Path(shutil.copytree(paper_run, tmp_path / "run"))
