"""An audit runs each attack once, goes on where it was stopped, and lists what could not be run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.privacy.phantoms import phantom_data
from tests.privacy.records import result

from veilray.errors import DataError
from veilray.privacy.audit import AuditPlan, run_audit
from veilray.privacy.data import AuditData, NamedAttack, Progress, Variant
from veilray.privacy.extent import DEFAULT, QUICK, Extent
from veilray.privacy.results import AttackResult, Skipped, read_audit
from veilray.privacy.variants import clean_variant, simulated_variant


class _Watcher:
    def __init__(self) -> None:
        self.begun: list[tuple[str, str, bool]] = []

    def begins(self, attack: str, variant: str, *, reused: bool) -> None:
        self.begun.append((attack, variant, reused))

    def at(self, what: str) -> None:
        pass

    def ends(self) -> None:
        pass


class _Counting:
    """An attack that counts its calls, and may fail."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error, self.calls = name, error, 0

    def __call__(
        self, data: AuditData, variant: Variant, *, extent: Extent, seeds: Sequence[int], progress: Progress
    ) -> list[AttackResult | Skipped]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        progress("counting")
        return [result(attack=self.name, variant=variant.name, value=extent.linked, seeds=tuple(seeds))]


def _plan(*attacks: _Counting, **given: Any) -> AuditPlan:
    data = phantom_data(2)
    usual = {
        "data": data,
        "variants": [clean_variant(data), simulated_variant(data, mean=0.1, std=0.2, seed=1)],
        "attacks": [NamedAttack(name=one.name, run=one) for one in attacks],
        "extent": QUICK,
        "grey_step": 1 / 255,
    }
    return AuditPlan(**(usual | given))


def test_every_attack_meets_every_variant(tmp_path: Path) -> None:
    first, second = _Counting("first"), _Counting("second")
    audit = run_audit(_plan(first, second), tmp_path, _Watcher())
    assert {(one.attack, one.variant) for one in audit.results} == {
        (attack, variant) for attack in ("first", "second") for variant in ("original", "noise 0.2")
    }
    assert audit == read_audit(tmp_path)
    assert audit.formal is not None
    assert [level.std for level in audit.formal.levels] == [0.2]
    assert audit.results[0].value == QUICK.linked


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    works, fails = _Counting("works"), _Counting("fails", error=KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        run_audit(_plan(works, fails), tmp_path, _Watcher())
    assert works.calls == 1
    fails.error = None
    watcher = _Watcher()
    audit = run_audit(_plan(works, fails), tmp_path, watcher)
    assert watcher.begun[0] == ("works", "original", True)
    assert (works.calls, fails.calls) == (2, 3)
    assert len(audit.results) == 4


def test_what_takes_long_is_prepared_before_an_attack_and_not_for_what_is_finished(tmp_path: Path) -> None:
    data, prepared = phantom_data(2), []
    slow = dataclasses.replace(clean_variant(data), prepare=prepared.append)
    for _ in range(2):
        run_audit(_plan(_Counting("works"), variants=[slow]), tmp_path, _Watcher())
        assert len(prepared) == 1


def test_other_inputs_are_run_anew(tmp_path: Path) -> None:
    attack = _Counting("attack")
    data = phantom_data(2)
    plan = _plan(attack, variants=[clean_variant(data)])
    run_audit(plan, tmp_path, _Watcher())
    for other in (
        dataclasses.replace(plan, seeds=(9,)),
        dataclasses.replace(plan, extent=DEFAULT),
        dataclasses.replace(plan, extent=dataclasses.replace(QUICK, linked=7)),
        dataclasses.replace(plan, variants=[dataclasses.replace(clean_variant(data), judged=(1,))]),
        dataclasses.replace(plan, data=dataclasses.replace(data, digest="another")),
        dataclasses.replace(plan, attacks=[NamedAttack(name="attack", run=attack, inputs="weights")]),
    ):
        before = attack.calls
        run_audit(other, tmp_path, _Watcher())
        assert attack.calls == before + 1
    run_audit(plan, tmp_path, _Watcher())
    assert attack.calls == 7


def test_a_damaged_result_is_run_again(tmp_path: Path) -> None:
    attack = _Counting("attack")
    run_audit(_plan(attack), tmp_path, _Watcher())
    for path in (tmp_path / "attacks").iterdir():
        path.write_text(path.read_text()[:-20])
    assert len(run_audit(_plan(attack), tmp_path, _Watcher()).results) == 2
    assert attack.calls == 4


def test_what_the_data_cannot_bear_is_listed_and_the_rest_is_run(tmp_path: Path) -> None:
    works, fails = _Counting("works"), _Counting("fails", error=DataError("all images are of one patient."))
    known = Skipped(attack="composition", reason="no ledger was given")
    audit = run_audit(_plan(fails, works, not_possible=(known,)), tmp_path, _Watcher())
    assert len(audit.results) == 2
    assert {(one.attack, one.reason) for one in audit.skipped} == {
        ("fails", "all images are of one patient"),
        ("composition", "no ledger was given"),
    }


def test_a_defect_is_no_finding(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_audit(_plan(_Counting("fails", error=ZeroDivisionError())), tmp_path, _Watcher())
