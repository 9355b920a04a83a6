"""The table of one attack as a page and a report show it: a row for each figure, a column for each kind of image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veilray.privacy.catalogue import listed
from veilray.privacy.results import FEW_PATIENTS, AttackResult, Audit, Difference, few_patients_note
from veilray.report import audit_values

_AGE = "age"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure."""

    value: str
    ends: str
    """Of its interval; empty where there is none."""
    predicted: str = ""
    """What a closed form says; empty where there is none."""
    few: str = ""
    """That it is from few patients, where it is."""

    @property
    def plain(self) -> str:
        """In one line, with the interval in brackets."""
        beside = "; ".join(filter(None, [self.ends, self.few]))
        return "; ".join(filter(None, [f"{self.value} ({beside})" if beside else self.value, self.predicted]))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of one attacker, of all the images that it was measured on."""

    metric: str
    attacker: str
    chance: str
    """What guessing gives; empty where that is no number."""
    by_variant: Mapping[str, Cell]


def shown(audit: Audit, attack: str) -> list[AttackResult]:
    """The figures of an attack that its table has: parts of an attacker are for who looks into audit.json."""
    return [one for one in audit.results if one.attack == attack and one.role != "part"]


def rows(results: Sequence[AttackResult]) -> list[Row]:
    """A row for each metric and attacker; below those of matched impostors what they exceed metadata by."""
    grouped: dict[tuple[str, str], list[AttackResult]] = {}
    for one in results:
        grouped.setdefault((audit_values.metric_words(one), one.attacker), []).append(one)
    found = []
    for (metric, attacker), of_row in grouped.items():
        cells = {one.variant: _cell(one) for one in of_row}
        found.append(Row(metric=metric, attacker=attacker, chance=audit_values.chance_text(of_row), by_variant=cells))
        beyond = {one.variant: _beyond(one, more) for one in of_row if one.matched_on and (more := one.above_metadata)}
        if beyond:
            above = metric.replace("AUC", f"AUC above {listed(matched_names(of_row[0]))} alone", 1)
            found.append(Row(metric=above, attacker=attacker, chance="", by_variant=beyond))
    return found


def matched_names(result: AttackResult) -> list[str]:
    """In what both images of a pair are alike, by name alone: `age` for `age within 5 years`."""
    return [_AGE if name.startswith(f"{_AGE} ") else name for name in result.matched_on]


def _cell(result: AttackResult) -> Cell:
    return Cell(
        value=audit_values.value_text(result.value, result.unit),
        ends=audit_values.interval_text(result),
        predicted=audit_values.predicted_text(result),
        few=_few(result),
    )


def _beyond(result: AttackResult, more: Difference) -> Cell:
    value, ends = audit_values.difference_text(more)
    return Cell(value=value, ends=ends, few=_few(result))


def _few(result: AttackResult) -> str:
    return few_patients_note(result.n_patients) if result.n_patients < FEW_PATIENTS else ""
