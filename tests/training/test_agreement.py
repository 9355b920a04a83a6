"""What ranks must have in common: versions of all that can change a training's results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from tests.training.small import small_config

from veilray.errors import UsageError
from veilray.parallel.group import Group
from veilray.training import agreement, packages


@dataclass
class Pair:
    """Rank 0 of two, whose other has these versions and all else alike."""

    versions: dict[str, str]
    is_lead: bool = True
    ended_with: list[int] = field(default_factory=list)

    def gather(self, own: dict[str, Any]) -> list[dict[str, Any]]:
        return [own, {**own, "host": "other", "versions": {**own["versions"], **self.versions}}]

    def end_for_good(self, status: int) -> None:
        self.ended_with.append(status)


def _check(pair: Pair) -> None:
    agreement.check_agreement(cast(Group, pair), config=small_config(), digest="cafe")


@pytest.mark.parametrize("package", ["torch", "numpy", "scipy", "safetensors", "pydantic", "python"])
def test_a_rank_with_another_version_is_named(package: str) -> None:
    pair = Pair({package: "0.0.1"})
    with pytest.raises(UsageError, match=rf"rank 1 on other runs {package} 0\.0\.1, rank 0 on .* runs \d"):
        _check(pair)
    assert pair.ended_with == [2]


def test_a_package_that_is_missing_everywhere_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = packages._installed("no-such-package")
    monkeypatch.setitem(agreement.PACKAGES, "scipy", missing)
    _check(Pair({}))
    with pytest.raises(UsageError, match=r"runs scipy 1\.0, rank 0 on .* runs \(none\)"):
        _check(Pair({"scipy": "1.0"}))
