"""How work falls to ranks, without any: who owns what, and how parts come together."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from veilray.parallel.group import ALONE, Group
from veilray.parallel.sharding import _interleaved, map_in_order, merged, owner


def test_names_are_spread_evenly_and_stay_where_they_are() -> None:
    group = Group(rank=0, world_size=4)
    owners = [owner(f"{number:08}_000.png", group) for number in range(4000)]
    assert owners == [owner(f"{number:08}_000.png", replace(group, rank=3)) for number in range(4000)]
    counts = Counter(owners)
    assert set(counts) == {0, 1, 2, 3}
    assert max(counts.values()) - min(counts.values()) < 250  # four standard deviations of such a difference
    assert owner("name that is no UTF-8: \udcff", group) in range(4)
    assert owner("anything", ALONE) == 0


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7])
def test_what_was_dealt_out_in_turn_comes_back_in_order(count: int) -> None:
    assert _interleaved([list(range(rank, count, 3)) for rank in range(3)]) == list(range(count))


def test_numbered_values_come_in_the_order_of_their_numbers() -> None:
    assert merged([(7, "b"), (2, "a"), (9, "c")], ALONE) == ["a", "b", "c"]


def test_alone_every_item_is_consumed_in_order_and_an_error_passes() -> None:
    seen: list[int] = []

    def run(consume: object) -> None:
        map_in_order(
            abs,
            [-3, 2, -1],
            consume,  # type: ignore[arg-type]
            group=ALONE,
            workers=1,
            label=str,
            pack=lambda value: (value, b""),
            unpack=lambda value, content: int(value),
        )

    run(seen.append)
    assert seen == [3, 2, 1]
    with pytest.raises(ZeroDivisionError):
        run(lambda value: 1 // 0)
