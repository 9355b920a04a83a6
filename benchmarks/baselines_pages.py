"""The tables that docs/explanation/comparison.md shows of what baselines.py measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from estimates import with_interval

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "comparison.md"
_COLUMNS = {"psnr": ("PSNR, dB", "{:.2f}"), "ssim": ("SSIM", "{:.4f}"), "lpips": ("LPIPS", "{:.4f}")}


def write_page(record: dict[str, Any], page: Path = PAGE) -> None:
    """Write the tables of a record into the page, between their marks."""
    text = page.read_text(encoding="utf-8")
    for name, table in (("scores", _scores(record)), ("gains", _gains(record)), ("strengths", _strengths(record))):
        text = with_table(text, name, table, page)
    page.write_text(text, encoding="utf-8")
    print(f"written: {page}")


def with_table(text: str, name: str, table: str, page: Path, *, script: str = "baselines.py") -> str:
    """A page's text with a table between its marks; SystemExit where there are none."""
    begin, end = f"<!-- {name}: made by benchmarks/{script} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page} has no place for the table {name}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def _scores(record: dict[str, Any]) -> str:
    shown = [metric for metric in _COLUMNS if any(metric in one["metrics"] for one in _methods(record))]
    rows = [
        [
            level["noise"],
            method["label"],
            *(_interval(method["metrics"].get(metric), _COLUMNS[metric][1]) for metric in shown),
            "–" if method["core_seconds"] is None else f"{method['core_seconds']:.2g}",
        ]
        for level in record["levels"]
        for method in level["methods"]
    ]
    tuning = sorted({len(one["tuning_images"]) for one in record["tuning"].values()})
    facts = (
        f"{record['images']} {record['split']} images of {record['patients']} patients, mean {_means(record)}; in "
        f"brackets {record['confidence']:.0%} intervals by patient. Strengths were chosen on "
        f"{' to '.join(map(str, tuning))} validation images. Seconds of one core on "
        f"{record['hardware']['device']}, {record['hardware']['date']}; of {record['seconds_of']}."
    )
    header = ["noise", "method", *(_COLUMNS[metric][0] for metric in shown), "s an image"]
    return f"{facts}\n\n{markdown(header, rows)}"


def _gains(record: dict[str, Any]) -> str:
    rows = [
        [
            level["noise"],
            f"{one['first']} − {one['second']}",
            _interval(one, "{:+.2f}"),
            "< 0.001" if one["p_holm"] < 0.001 else f"{one['p_holm']:.3f}",
            f"{one['share_won']:.0%}",
        ]
        for level in record["levels"]
        for one in level["differences"]
        if one["metric"] == "psnr"
    ]
    return markdown(["noise", "difference on the same images", "PSNR, dB", "p, Holm", "images won"], rows)


def _strengths(record: dict[str, Any]) -> str:
    rows = []
    for level, tuned in record["tuning"].items():
        for name, one in tuned["methods"].items():
            chosen = ", ".join(f"{key} {value}" for key, value in one["strength"].items())
            best = max(tried["psnr"] for tried in one["grid"])
            edge = "yes" if one["at_edge_of_grid"] else "no"
            rows.append([level, name, chosen, f"{best:.2f}", str(len(one["grid"])), edge])
    header = ["level", "method", "strength chosen", "PSNR on validation, dB", "strengths tried", "at the grid's edge"]
    return markdown(header, rows)


def _methods(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [method for level in record["levels"] for method in level["methods"]]


def _means(record: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys(level["mean"] for level in record["levels"]))


def _interval(value: dict[str, float] | None, form: str) -> str:
    if value is None:
        return "not computed"
    return with_interval(value, form)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
