"""The tables of docs/explanation/comparison.md, of what specialists.py and rivals.py measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baselines_pages import PAGE, markdown, with_table
from estimates import with_interval

_FORMS = {"psnr": "{:.2f}", "ssim": "{:.4f}", "lpips": "{:.4f}"}
_DIFFERENCES = {"psnr": "{:+.2f}", "ssim": "{:+.4f}", "lpips": "{:+.4f}"}
_PLACES = {"nih": "NIH", "hannover": "Hannover"}
_NAMES = {
    "default": "`default`",
    "every_noise": "trained on, every noise",
    "on_hannover": "trained on, at Hannover",
    "only": "trained on, this noise alone",
    "unet": "U-Net, width 32",
    "unetpp": "U-Net++, width 32",
    "dncnn": "DnCNN",
    "dncnn3": "DnCNN-3, every noise",
    "tnrd": "TNRD",
}


def write_specialists(record: dict[str, Any], page: Path = PAGE) -> None:
    """Write the table of what one network for all costs into the page, between its marks."""
    of_nih = [name for name in record["runs"] if name != "on_hannover"]
    epochs = f"{_epochs(record, of_nih)} epochs of NIH, {_epochs(record, ['on_hannover'])} of Hannover"
    facts = f"{_facts(record)} Each network was trained on for {_seconds(record)} ({epochs})."
    rows = [
        [place, level, _name(name), *_cells(metrics, _FORMS), *_cells(one["differences"].get(name), _DIFFERENCES)]
        for key, place in _PLACES.items()
        for level, one in record[key].items()
        for name, metrics in one["metrics"].items()
    ]
    header = ["patients", "noise", "network", "PSNR, dB", "SSIM", "LPIPS", *_header("the one without")]
    _write("specialists", f"{facts}\n\n{markdown(header, rows)}", page)


def write_rivals(record: dict[str, Any], page: Path = PAGE) -> None:
    """Write the table of what `default` is worth beside networks that others published into the page."""
    rows = [
        [
            level,
            _name(name),
            "–" if name == "default" else _epochs(record, [name, f"{name}_{level}"]),
            *_cells(metrics, _FORMS),
            *_cells(one["differences"].get(name), _DIFFERENCES),
        ]
        for level, one in record["nih"].items()
        for name, metrics in one["metrics"].items()
    ]
    facts = f"{_facts(record)} Each rival was trained for {_seconds(record)}; `default` for longer."
    header = ["noise", "network", "epochs", "PSNR, dB", "SSIM", "LPIPS", *_header("`default`")]
    _write("rivals", f"{facts}\n\n{markdown(header, rows)}", page)


def _write(name: str, table: str, page: Path) -> None:
    text = with_table(page.read_text(encoding="utf-8"), name, table, page, script=f"{name}.py")
    page.write_text(text, encoding="utf-8")
    print(f"written: {page}")


def _facts(record: dict[str, Any]) -> str:
    counts = (
        f"{one['images']} {record['split']} images of {one['patients']} patients of {place}"
        for key, place in _PLACES.items()
        for one in list(record.get(key, {}).values())[:1]
    )
    seeds = "one seed" if len(record["seeds"]) == 1 else f"{len(record['seeds'])} seeds"
    where = f"{record['hardware']['device']}, {record['hardware']['date']}"
    return f"{', '.join(counts)}; mean {record['mean']}; 95 % intervals by patient; {seeds}. {where}."


def _header(against: str) -> list[str]:
    return [f"{metric} less that of {against}" for metric in ("PSNR", "SSIM", "LPIPS")]


def _name(name: str) -> str:
    return _NAMES[name.partition("_0")[0]]


def _seconds(record: dict[str, Any]) -> str:
    return f"{60 * record['minutes_of_two_cores']:.0f} seconds of two cores"


def _cells(metrics: dict[str, Any] | None, forms: dict[str, str]) -> list[str]:
    found = metrics or {}
    return [with_interval(found[metric], form) if found.get(metric) else "–" for metric, form in forms.items()]


def _epochs(record: dict[str, Any], names: list[str]) -> str:
    """How often the runs of these names saw the training images."""
    counts = sorted({run["epochs"] for name in names for run in record["runs"].get(name, [])})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
