"""The table of docs/explanation/comparison.md, of what specialists.py measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baselines_pages import PAGE, markdown, with_table
from estimates import with_interval

_FORMS = {"psnr": "{:.2f}", "ssim": "{:.4f}", "lpips": "{:.4f}"}
_PLACES = {"nih": "NIH", "hannover": "Hannover"}
_NAMES = {"default": "`default`", "every_noise": "trained on, every noise", "on_hannover": "trained on, at Hannover"}


def write_page(record: dict[str, Any], page: Path = PAGE) -> None:
    """Write the table of a record into the page, between its marks."""
    text = with_table(page.read_text(encoding="utf-8"), "specialists", _table(record), page, script="specialists.py")
    page.write_text(text, encoding="utf-8")
    print(f"written: {page}")


def _table(record: dict[str, Any]) -> str:
    rows = [
        [place, level, _NAMES.get(name, "trained on, this noise alone"), *_cells(metrics), _difference(one, name)]
        for key, place in _PLACES.items()
        for level, one in record[key].items()
        for name, metrics in one["metrics"].items()
    ]
    counts = (
        f"{one['images']} {record['split']} images of {one['patients']} patients of {place}"
        for key, place in _PLACES.items()
        for one in list(record[key].values())[:1]
    )
    seeds = "one seed" if len(record["seeds"]) == 1 else f"{len(record['seeds'])} seeds"
    facts = (
        f"{', '.join(counts)}; mean {record['mean']}; 95 % intervals by patient; {seeds}. Each network was trained on "
        f"for {60 * record['minutes_of_two_cores']:.0f} seconds of two cores ({_epochs(record)}). "
        f"{record['hardware']['device']}, {record['hardware']['date']}."
    )
    header = ["patients", "noise", "network", "PSNR, dB", "SSIM", "LPIPS", "difference, dB"]
    return f"{facts}\n\n{markdown(header, rows)}"


def _cells(metrics: dict[str, Any]) -> list[str]:
    return ["–" if not metrics.get(metric) else with_interval(metrics[metric], form) for metric, form in _FORMS.items()]


def _difference(one: dict[str, Any], name: str) -> str:
    found = one["differences"].get(name)
    return "what the others are compared with" if found is None else with_interval(found["psnr"], "{:+.2f}")


def _epochs(record: dict[str, Any]) -> str:
    """How often the trainings saw the images of either hospital."""
    counts: dict[str, set[int]] = {place: set() for place in _PLACES.values()}
    for name, runs in record["runs"].items():
        counts["Hannover" if name == "on_hannover" else "NIH"].update(run["epochs"] for run in runs)
    return ", ".join(f"{' to '.join(map(str, _ends(seen)))} epochs of {place}" for place, seen in counts.items())


def _ends(values: set[int]) -> list[int]:
    return sorted({min(values), max(values)})
