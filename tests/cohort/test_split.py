"""The split: a function of the id alone, in the right shares, and the published one by image."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilray.cohort.lists import read_split
from veilray.cohort.split import SPLITS, Shares, assign, image_split, parse_shares, shared_patients
from veilray.errors import UsageError

FIXED = Path(__file__).parents[2] / "benchmarks/splits/nih256.csv"


def test_shares_are_reached() -> None:
    n = 20_000
    counts = Counter(assign(f"{number:08}", seed=0, shares=Shares()) for number in range(n))
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs(counts[split] - n * share) < 5 * (n * share * (1 - share)) ** 0.5


def test_seeds_give_independent_splits() -> None:
    names = [f"{number:08}" for number in range(20_000)]
    half = Shares(train=50, validation=0, test=50)
    first, second = ([assign(name, seed=seed, shares=half) for name in names] for seed in (0, 1))
    same = sum(a == b for a, b in zip(first, second, strict=True))
    assert abs(same - 10_000) < 5 * 5_000**0.5


@given(st.text(max_size=30), st.integers(0, 2**64 - 1))
def test_growing_the_training_share_moves_nobody_out_of_training(patient: str, seed: int) -> None:
    smaller = assign(patient, seed=seed, shares=Shares(train=50, validation=25, test=25))
    larger = assign(patient, seed=seed, shares=Shares(train=70, validation=15, test=15))
    assert larger == "train" or smaller != "train"


@pytest.mark.parametrize(("text", "only"), [("100/0/0", "train"), ("0/100/0", "validation"), ("0/0/100", "test")])
def test_a_set_can_be_everything(text: str, only: str) -> None:
    assert {assign(str(number), seed=3, shares=parse_shares(text)) for number in range(500)} == {only}


@pytest.mark.parametrize("text", ["80/10", "80/10/20", "a/b/c", "", "110/-10/0", "nan/50/50", "80/10/10/0"])
def test_bad_shares_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="80/10/10"):
        parse_shares(text)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_must_fit_64_bits(seed: int) -> None:
    with pytest.raises(UsageError, match="split seed"):
        assign("a", seed=seed, shares=Shares())


def test_published_counts() -> None:
    codes = image_split([f"image {number}" for number in range(14_999)], seed=17)
    assert np.bincount(codes).tolist() == [7_499, 4_949, 2_551]


@given(st.lists(st.text(max_size=8), unique=True, max_size=40), st.randoms(use_true_random=False))
def test_image_split_does_not_depend_on_the_order(names: list[str], random: object) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = dict(zip(names, image_split(names, seed=5).tolist(), strict=True))
    other = dict(zip(shuffled, image_split(shuffled, seed=5).tolist(), strict=True))
    assert one == other


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 2)), max_size=30))
def test_shared_patients_against_a_plain_count(images: list[tuple[str, int]]) -> None:
    sets: dict[str, set[int]] = defaultdict(set)
    for patient, code in images:
        sets[patient].add(code)
    expected = sum(len(codes) > 1 for codes in sets.values())
    assert shared_patients([patient for patient, _ in images], [code for _, code in images]) == expected


def test_the_fixed_split_shares_no_patient() -> None:
    split = read_split(FIXED)
    codes = [SPLITS.index(name) for name in split.values()]
    assert shared_patients([image.split("_")[0] for image in split], codes) == 0
    assert len(split) == 865
    assert set(split.values()) == set(SPLITS)


@pytest.mark.real
def test_the_fixed_split_covers_the_radiographs_and_tests_on_every_large_one(real_data: Path) -> None:
    split = read_split(FIXED)
    small, large = ({path.stem for path in (real_data / name).glob("*.png")} for name in ("nih256", "nih1024"))
    assert set(split) == small | large
    patients = {name.split("_")[0] for name in large}
    assert {name for image, name in split.items() if image.split("_")[0] in patients} == {"test"}


def test_the_fixed_split_holds_ids_and_sets_only() -> None:
    with FIXED.open(newline="") as stream:
        assert next(csv.reader(stream)) == ["image_id", "split"]
