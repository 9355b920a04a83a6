"""Scores of the cells of noisy_only.py, kept beside its record, so that pieces of the plan add up in any order."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from common import RESULTS, hardware
from veilray.files import write_text

PATH = RESULTS / "noisy_only_cells.json"
DECIMALS = 4
"""Of a decibel."""

Result = dict[str, Any]


def kept() -> dict[str, Result]:
    """Results by the name of their file; `made_by` says of what they are."""
    if not PATH.exists():
        return {}
    record = json.loads(PATH.read_text(encoding="utf-8"))
    found = {}
    for name, packed in record["results"].items():
        images = record["images"][packed.pop("on")]
        scores = packed.pop("psnr")
        found[name] = {
            **packed,
            "images": [{**image, "psnr": psnr} for image, psnr in zip(images, scores, strict=True)],
        }
    return found


def keep(results: Mapping[str, Result]) -> None:
    """Write down results beside those that are there, in the place of those of the same name."""
    with _alone():
        images: list[list[dict[str, str]]] = []
        packed = {}
        for name, result in sorted({**kept(), **results}.items()):
            on = [{"image": one["image"], "patient": one["patient"]} for one in result["images"]]
            if on not in images:
                images.append(on)
            own = {key: value for key, value in result.items() if key != "images"}
            scores = [round(one["psnr"], DECIMALS) for one in result["images"]]
            packed[name] = {**own, "on": images.index(on), "psnr": scores}
        record = {"hardware": hardware(), "images": images, "results": packed}  # of the last piece
        write_text(PATH, json.dumps(record, separators=(",", ":")) + "\n")


@contextmanager
def _alone() -> Iterator[None]:
    """While no other process is in here."""
    folder = os.open(PATH.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
