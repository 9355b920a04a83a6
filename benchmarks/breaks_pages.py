"""The tables of docs/explanation/where-it-breaks.md, of what breaks.py measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines_pages import markdown, with_table
from estimates import with_interval

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "where-it-breaks.md"
SCRIPT = "breaks.py"
_METHODS = {"network": "the network", "tv": "total variation"}


def write_page(record: dict[str, Any], page: Path = PAGE) -> None:
    """Write the tables of a record into the page, between their marks."""
    physics = record["physics"]
    tables = {
        "conditions": _conditions(record),
        "noise left": _noise_left(physics),
        "edge": _edge(physics),
        "contrast": _contrast(physics),
    }
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = with_table(text, name, table, page, script=SCRIPT)
    page.write_text(text, encoding="utf-8")
    print(f"written: {page}")


def _conditions(record: dict[str, Any]) -> str:
    rows, last = [], ""
    for one in record["conditions"]:
        network, other = one["methods"]["network"], one["methods"]["tv"]
        perceptual = network.get("lpips")
        rows.append(
            [
                one["group"] if one["group"] != last else "",
                one["name"],
                str(one["images"]),
                f"{one['methods']['noisy']['psnr']['mean']:.2f}",
                with_interval(network["psnr"], "{:.2f}"),
                f"{network['ssim']['mean']:.3f}",
                "not computed" if perceptual is None else f"{perceptual['mean']:.3f}",
                f"{other['psnr']['mean']:.2f}",
                with_interval(one["network_minus_tv"], "{:+.2f}"),
            ]
        )
        last = one["group"]
    header = ["", "condition", "images", "noisy, dB", "network, dB", "SSIM", "LPIPS", "TV, dB", "network − TV, dB"]
    model = f"`{record['model']}`, weights {record['weights_sha256'][:12]}"
    facts = f"Network: {model}. One image a patient; 95 % intervals by patient. {_where(record)}"
    return f"{facts}\n\n{markdown(header, rows)}"


def _noise_left(physics: dict[str, Any]) -> str:
    rows = [
        [
            str(one["std"]),
            _METHODS[name],
            f"{one['std_before']:.3f}",
            f"{one['std_left']:.4f}",
            *(f"{100 * share:.2g} %" for share in one["share_left"]),
        ]
        for found in zip(*(_of(physics["noise_left"], name) for name in _METHODS), strict=True)
        for name, one in found
    ]
    bands = [f"{low:g} to {high:g}" for low, high in physics["noise_left"]["network"][0]["bands"]]
    return markdown(["noise", "after", "std before", "std left", *(f"power left, {band}" for band in bands)], rows)


def _edge(physics: dict[str, Any]) -> str:
    clean = {one["contrast"]: one for one in physics["edge"]["clean"]}
    rows = [
        [
            str(one["std"]),
            str(one["contrast"]),
            _METHODS[name],
            f"{one['mtf50']:.3f}",
            f"{clean[one['contrast']]['mtf50']:.3f}",
            f"{100 * one['contrast_kept']:.0f} %",
        ]
        for found in zip(*(_of(physics["edge"], name) for name in _METHODS), strict=True)
        for name, one in found
    ]
    return markdown(["noise", "edge's contrast", "after", "MTF50", "MTF50 of the clean edge", "contrast kept"], rows)


def _contrast(physics: dict[str, Any]) -> str:
    rows = [
        [str(one["std"]), one["detail"], _METHODS[name], with_interval(one, "{:.2f}")]
        for found in zip(*(_of(physics["contrast"], name) for name in _METHODS), strict=True)
        for name, one in found
    ]
    return markdown(["noise", "detail", "after", "contrast kept"], rows)


def _of(by_method: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, one) for one in by_method[name]]


def _where(record: dict[str, Any]) -> str:
    sets: Sequence[str] = [f"{name} {found['images']}" for name, found in record["sets"].items()]
    return f"Images: {', '.join(sets)}. {record['hardware']['device']}, {record['hardware']['date']}."
