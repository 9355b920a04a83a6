"""Scores of the cells of noisy_only.py, kept beside its record, so that pieces of the plan add up in any order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from common import RESULTS
from noisy_only_arms import setting

PATH = RESULTS / "noisy_only_cells.json"
DECIMALS = 4
"""Of a decibel."""

Result = dict[str, Any]


def kept() -> dict[str, Result]:
    """Results by the name of their file, of runs in the setting that there is now."""
    if not PATH.exists():
        return {}
    record = json.loads(PATH.read_text(encoding="utf-8"))
    if record["setting"] != setting():
        return {}
    return {
        name: {**result, "images": [{**image, "psnr": psnr} for image, psnr in zip(images, scores, strict=True)]}
        for images in [record["images"]]
        for name, (result, scores) in record["results"].items()
    }


def keep(results: Mapping[str, Result]) -> None:
    """Write down results, all scored on the same images."""
    first = next(iter(results.values()))
    images = [{"image": one["image"], "patient": one["patient"]} for one in first["images"]]
    packed = {}
    for name, result in sorted(results.items()):
        if [one["image"] for one in result["images"]] != [one["image"] for one in images]:
            raise ValueError(f"{name} was scored on other images")
        scores = [round(one["psnr"], DECIMALS) for one in result["images"]]
        packed[name] = ({key: value for key, value in result.items() if key != "images"}, scores)
    record = {"setting": setting(), "images": images, "results": packed}
    PATH.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
