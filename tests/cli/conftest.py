"""A small cohort and a run on it, made through the command line and shared by the tests that only read them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.command_line import SMALL, done, make_cohort


@pytest.fixture(scope="session")
def flow_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 40 images of 20 patients, 32x32, with the images beside it in `png`."""
    return make_cohort(tmp_path_factory.mktemp("flow"))


@pytest.fixture(scope="session")
def flow_run(flow_cohort: Path) -> Path:
    """A run trained on `flow_cohort`, scored on its validation images."""
    run = flow_cohort.parent / "run"
    done("train", "default", "--data", flow_cohort, "--out", run, *SMALL)
    return run


@pytest.fixture
def own_run(flow_run: Path, tmp_path: Path) -> Path:
    """A copy of `flow_run` that a test may change."""
    return Path(shutil.copytree(flow_run, tmp_path / "run"))
