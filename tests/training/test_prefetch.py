"""Batches prepared ahead: the same ones in the same order, no further ahead than asked, in another thread."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.small import small_config, train_here

from veilray.training.prefetch import prefetched


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
def test_the_batches_are_those_of_the_steps_in_order(ahead: int) -> None:
    assert list(prefetched(lambda step: step * step, range(5, 25), ahead=ahead)) == [n * n for n in range(5, 25)]


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_than_asked_for_are_begun_ahead(ahead: int) -> None:
    begun: list[int] = []
    with closing(prefetched(lambda step: begun.append(step) or step, range(100), ahead=ahead)) as batches:  # type: ignore[func-returns-value]
        for taken in range(10):
            assert next(batches) == taken
            assert len(begun) <= taken + 1 + ahead


def test_they_are_prepared_in_another_thread_that_ends_with_the_iterator() -> None:
    with closing(prefetched(lambda step: threading.current_thread(), range(100), ahead=2)) as batches:
        worker = next(batches)
        assert worker is not threading.current_thread()
        assert worker.is_alive()
    assert not worker.is_alive()
    assert (
        list(prefetched(lambda step: threading.current_thread(), range(2), ahead=0)) == [threading.current_thread()] * 2
    )


def test_an_error_is_raised_at_its_own_step() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise ValueError("bad batch")
        return step

    batches = prefetched(make, range(10), ahead=5)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="bad batch"):
        next(batches)


def test_training_is_the_same_with_batches_ahead(cohort: Path, tmp_path: Path) -> None:
    weights = []
    for ahead in (0, 2):
        changes: dict[str, object] = {"prefetch": ahead}
        train_here(small_config(launch=changes), cohort, tmp_path / f"run{ahead}")
        weights.append(load_file(tmp_path / f"run{ahead}" / "checkpoints" / "best.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
