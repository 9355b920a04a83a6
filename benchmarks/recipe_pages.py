"""The table of docs/explanation/recipe.md, of what recipe.py measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines_pages import markdown, with_table
from estimates import with_interval

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "recipe.md"
_FORMS = {"psnr": "{:+.2f}", "ssim": "{:+.4f}", "lpips": "{:+.4f}"}


def write_page(record: dict[str, Any], page: Path = PAGE) -> None:
    """Write the table of a record into the page, between its marks."""
    text = with_table(page.read_text(encoding="utf-8"), "recipe", _table(record), page, script="recipe.py")
    page.write_text(text, encoding="utf-8")
    print(f"written: {page}")


def _table(record: dict[str, Any]) -> str:
    reference = next(iter(record["recipes"].values()))
    rows = [["**the reference**", *_cells(reference["metrics"], signed=False), *_cost(reference), ""]]
    for name, one in record["recipes"].items():
        if one is not reference:
            seeds = ", ".join(f"{value:+.2f}" for value in one["differences"]["psnr"]["by_seed"])
            rows.append([name.replace("_", " "), *_cells(one["differences"]), *_cost(one), seeds])
    if "self_ensemble" in record:
        rows.append(["self-ensemble at test", *_cells(record["self_ensemble"]), "", "", ""])
    facts = (
        f"{record['images']} {record['split']} images of {record['patients']} patients, noise "
        f"{record['noise']['std']}, mean {record['noise']['mean']}; 95 % intervals by patient; "
        f"{len(reference['runs'])} seeds. **Each run was given {60 * record['minutes_of_two_cores']:.0f} seconds of "
        "two cores**, in whole epochs; the table says how many it took. "
        f"{record['hardware']['device']}, {record['hardware']['date']}."
    )
    header = ["changed", "PSNR, dB", "SSIM", "LPIPS", "epochs", "seconds", "dB by seed"]
    return f"{facts}\n\n{markdown(header, rows)}"


def _cells(found: dict[str, Any], *, signed: bool = True) -> list[str]:
    forms = {metric: form if signed else form.replace("+", "") for metric, form in _FORMS.items()}
    return ["–" if not found.get(metric) else with_interval(found[metric], form) for metric, form in forms.items()]


def _cost(recipe: dict[str, Any]) -> list[str]:
    """Epochs, and seconds of two cores that they took."""
    epochs = [run["epochs"] for run in recipe["runs"]]
    seconds = [round(60 * run["minutes_of_two_cores"]) for run in recipe["runs"]]
    return [_range(epochs), _range(seconds)]


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
