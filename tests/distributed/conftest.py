"""The cohort that the tests of several ranks share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.distributed.harness import _no_rank_outlives_its_test
from tests.training.small import write_images

from veilray.cohort.build import import_radiographs
from veilray.cohort.split import Shares


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of images of 32 pixels a side, some in every set."""
    folder = tmp_path_factory.mktemp("cohort")
    write_images(folder / "png", patients=20)
    shares = Shares(train=70, validation=15, test=15)
    import_radiographs([folder / "png"], folder / "cohort", size=32, workers=1, shares=shares)
    return folder / "cohort"


__all__ = ["_no_rank_outlives_its_test"]
