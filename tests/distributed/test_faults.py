"""Faults: the ranks that are left end with one message, and a restart ends in the weights of an undisturbed training.

One round of them; `benchmarks/faults.py --rounds 20` does twenty, at random places.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.distributed.faults import (
    LIMIT,
    STEPS,
    Fault,
    deaths,
    differences,
    interrupted,
    train,
    wrong_after_full_disk,
    wrong_after_interruption,
    wrong_after_kills,
)

from veilray.training.run import RunFolder
from veilray.training.state import checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the faults are made by Linux's signals and limits"),
    pytest.mark.timeout(3 * LIMIT),  # whichever training does not end, what its processes said is told
]


@pytest.fixture(scope="module")
def undisturbed(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training without a fault."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finished = train(small_cohort, out)
    assert finished.status == 0, finished.err
    assert checkpoints(RunFolder(out).checkpoints)[-1].name == f"state-{STEPS:09d}.safetensors"
    return out


def test_every_death_is_told_once_and_the_last_life_ends_as_if_there_had_been_none(
    small_cohort: Path, undisturbed: Path, tmp_path: Path
) -> None:
    faults = deaths(0)
    finished = train(small_cohort, tmp_path / "run", faults)
    assert wrong_after_kills(faults, finished, tmp_path / "run", undisturbed) == [], f"{faults}\n{finished.err}"


def test_a_full_disk_ends_all_ranks_with_one_message(small_cohort: Path, tmp_path: Path) -> None:
    finished = train(small_cohort, tmp_path / "run", [Fault.drawn("full disk", 0)])
    assert wrong_after_full_disk(finished, tmp_path / "run") == [], finished.err


def test_ctrl_c_leaves_a_state_that_can_be_gone_on_with(small_cohort: Path, undisturbed: Path, tmp_path: Path) -> None:
    stopped = interrupted(small_cohort, tmp_path / "run", 3)
    assert wrong_after_interruption(stopped, tmp_path / "run") == [], stopped.err
    resumed = train(small_cohort, tmp_path / "run", resume=True)
    assert resumed.status == 0, resumed.err
    assert differences(tmp_path / "run", undisturbed) == []
