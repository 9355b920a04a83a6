"""The cohort that the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.training.small import write_images

from veilray.cohort.build import import_radiographs
from veilray.cohort.split import Shares


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 40 images of 20 patients, some in every set."""
    folder = tmp_path_factory.mktemp("cohort")
    write_images(folder / "png", patients=20)
    shares = Shares(train=60, validation=20, test=20)
    import_radiographs([folder / "png"], folder / "cohort", size=32, workers=1, shares=shares)
    return folder / "cohort"
