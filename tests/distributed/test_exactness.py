"""Several ranks are the same training as one: gradients, losses, validations and the choice of the best epoch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.exact import BATCH_SIZE, GRADIENTS, STEPS, TRAININGS, compute
from tests.distributed.harness import run_ranks
from torch import Tensor

from veilray.cohort.cohort import Cohort

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# What was computed is on the disk then. A group's threads now and then abort an interpreter that is being taken down on
# a crowded machine, which is not what is tested here.
SCRIPT = "import os; from tests.distributed.exact import main; main(); os._exit(0)"
# Norm below which a gradient is the rounding of zero: the bias before a batch normalisation, for one.
FLOOR = 1e-12


@pytest.fixture(scope="module")
def computed(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What 1, 2 and 3 ranks computed."""
    out = {}
    for ranks in (1, 2, 3):
        out[ranks] = tmp_path_factory.mktemp(f"ranks{ranks}")
        if ranks == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                compute(small_cohort, out[ranks])
            finally:
                torch.set_num_threads(threads)
            continue
        for result in run_ranks(SCRIPT, ranks, arguments=[small_cohort, out[ranks]], timeout=280):
            assert result.status == 0, result.err
    return out


def test_the_last_batch_leaves_a_rank_without_images(small_cohort: Path) -> None:
    # Or the tests below would not show that such a rank neither hangs nor counts.
    assert 0 < len(Cohort.open(small_cohort).rows("train")) % BATCH_SIZE < 3


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_in_float64_are_those_of_one_rank(computed: dict[int, Path], case: str, ranks: int) -> None:
    one, several = (load_file(computed[count] / f"{case}-float64.safetensors") for count in (1, ranks))
    assert one.keys() == several.keys()
    errors = {name: _distance(several[name], one[name]) for name in one}
    assert max(errors.values()) <= 1e-10, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("case", ["group", "batch"])
def test_gradients_in_float32_are_those_of_one_rank(computed: dict[int, Path], case: str, ranks: int) -> None:
    one, several = (load_file(computed[count] / f"{case}-float32.safetensors") for count in (1, ranks))
    difference = sum(float((several[name] - one[name]).square().sum()) for name in one)
    whole = sum(float(value.square().sum()) for value in one.values())
    assert (difference / whole) ** 0.5 <= 1e-5


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("case", TRAININGS)
def test_losses_and_validations_are_those_of_one_rank(computed: dict[int, Path], case: str, ranks: int) -> None:
    one, several = (json.loads((computed[count] / f"{case}.json").read_text()) for count in (1, ranks))
    assert len(one["losses"]) == STEPS
    assert several["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert several["best"][0] == one["best"][0]
    assert several["best"][1] == pytest.approx(one["best"][1], rel=1e-2)
    # Every image counted once: the weights are the initial ones, the same bit for bit.
    assert several["validation"] == pytest.approx(one["validation"], rel=1e-6)


@pytest.mark.parametrize("ranks", [2, 3])
def test_gradients_cross_ranks_once_a_step_however_many_parts_it_has(
    small_cohort: Path, computed: dict[int, Path], ranks: int
) -> None:
    steps = -(-len(Cohort.open(small_cohort).rows("train")) // (2 * BATCH_SIZE))
    exchanges = json.loads((computed[ranks] / "exchanges.json").read_text())
    assert exchanges == {"1": steps, "2": steps}  # so small a network fits into one bucket


def _distance(value: Tensor, other: Tensor) -> float:
    """L2 distance relative to `other`; 0 where both are no more than the rounding of zero."""
    if max(float(value.norm()), float(other.norm())) <= FLOOR:
        return 0.0
    return float((value - other).norm()) / float(other.norm())
