"""The tables of docs/explanation/comparison.md, of what specialists.py, rivals.py and rival_whole.py measured."""

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
    "alone_at_hannover": "from scratch, at Hannover alone",
    "every_noise": "fine-tuned, every noise",
    "on_hannover": "fine-tuned, at Hannover",
    "only": "fine-tuned, this noise alone",
    "unet": "U-Net, width 32",
    "unetpp": "U-Net++, width 32",
    "dncnn": "DnCNN",
    "dncnn3": "DnCNN-3, every noise",
    "tnrd": "TNRD",
}


def write_specialists(record: dict[str, Any], page: Path = PAGE) -> None:
    """Write the table of what one network for all costs into the page, between its marks."""
    of_nih = [name for name in record["runs"] if "hannover" not in name]
    epochs = f"{_epochs(record, of_nih)} epochs of NIH, {_epochs(record, ['on_hannover'])} epochs of Hannover"
    alone = ["alone_at_hannover"]
    own = f"the one from scratch {_seconds(record, alone)} ({_epochs(record, alone)} epochs)"
    seconds = _seconds(record, ["on_hannover", *of_nih])
    trained = f"Fine-tuned networks had {seconds} seconds of two cores ({epochs})"
    facts = f"{_facts(record)} {trained}, {own}."
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
            "–" if name == "default" else _training(record, [name, f"{name}_{level}"]),
            *_cells(metrics, _FORMS),
            *_cells(one["differences"].get(name), _DIFFERENCES),
        ]
        for level, one in record["nih"].items()
        for name, metrics in one["metrics"].items()
    ]
    facts = f"{_facts(record)} Seconds of training are of two cores; `default` had more."
    header = ["noise", "network", "epochs (s)", "PSNR, dB", "SSIM", "LPIPS", *_header("`default`")]
    _write("rivals", f"{facts}\n\n{markdown(header, rows)}", page)


def write_rival_whole(record: dict[str, Any], page: Path = PAGE) -> None:
    """Write the table of `default` beside a network that was trained for all of its epochs into the page."""
    (run,) = record["runs"]["unet"]
    rows = [
        [level, _name(name), *_cells(metrics, _FORMS), *_cells(one["differences"].get(name), _DIFFERENCES)]
        for level, one in record["nih"].items()
        for name, metrics in one["metrics"].items()
    ]
    trained = f"U-Net: {run['epochs']} epochs, of which number {run['best_epoch']} was the best on validation."
    facts = f"{_facts(record)} {trained}"
    header = ["noise", "network", "PSNR, dB", "SSIM", "LPIPS", *_header("`default`")]
    _write("rival_whole", f"{facts}\n\n{markdown(header, rows)}", page)


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


def _training(record: dict[str, Any], names: list[str]) -> str:
    return f"{_epochs(record, names)} ({_seconds(record, names)})"


def _seconds(record: dict[str, Any], names: list[str]) -> str:
    """The processor time that the runs of these names took, as seconds of two cores."""
    return _span({round(60 * run["minutes_of_two_cores"]) for run in _runs(record, names)})


def _cells(metrics: dict[str, Any] | None, forms: dict[str, str]) -> list[str]:
    found = metrics or {}
    return [with_interval(found[metric], form) if found.get(metric) else "–" for metric, form in forms.items()]


def _epochs(record: dict[str, Any], names: list[str]) -> str:
    """How often the runs of these names saw the training images."""
    return _span({run["epochs"] for run in _runs(record, names)})


def _runs(record: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    return [run for name in names for run in record["runs"].get(name, [])]


def _span(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)} to {max(values)}"
