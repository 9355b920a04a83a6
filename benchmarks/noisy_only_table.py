"""What the results of noisy_only.py add up to: paired differences, choices without clean images, and the page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from veilray.metrics.statistics import clustered_bootstrap, paired_comparison

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "training-without-clean-images.md"
MARK = "<!-- drawn by benchmarks/noisy_only.py -->"
BOOTSTRAP_SEED = 0
BLIND_KINDS = ("main", "objective", "help")
"""Kinds of arms between which Site Two may have to choose."""

Result = dict[str, Any]


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Means and paired differences for every level and arm, and how recipes rank without clean images."""
    rows = []
    for std, clamped in itertools.product(sorted({one["std"] for one in results}), (True, False)):
        here = [one for one in results if (one["std"], one["clamped"]) == (std, clamped) and one["kind"] != "search"]
        names = dict.fromkeys(one["arm"] for one in here)
        arms = {name: {one["seed"]: one for one in here if one["arm"] == name} for name in names}
        rows.extend(_row(own, arms.get(_reference(own), {})) for own in arms.values())
    return {"arms": rows, "ranking": ranking(results), "search": searched(results)}


def _reference(own: dict[int, Result]) -> str:
    """The arm with clean targets that an arm is held against."""
    return str(next(iter(own.values())).get("reference", "supervised"))


def _row(own: dict[int, Result], reference: dict[int, Result]) -> dict[str, Any]:
    first = next(iter(own.values()))
    patients = [one["patient"] for one in first["images"]]
    mean = clustered_bootstrap(_scores(own, sorted(own)).mean(axis=0), patients, seed=BOOTSTRAP_SEED)
    row = {name: first[name] for name in ("arm", "kind", "std", "clamped", "epochs", "learning_rate")}
    row |= {
        "seeds": sorted(own),
        "n_images": len(patients),
        "n_patients": len(set(patients)),
        "psnr": {"mean": mean.mean, "low": mean.low, "high": mean.high},
        "psnr_by_seed": _scores(own, sorted(own)).mean(axis=1).tolist(),
        "processor_seconds": [own[seed]["processor_seconds"] for seed in sorted(own)],
        "choice": {seed: own[seed]["choice"] for seed in sorted(own)},
        "by_epoch": {seed: own[seed]["by_epoch"] for seed in sorted(own)},
    }
    same = {seed for seed in own.keys() & reference.keys() if own[seed].get("start") == reference[seed].get("start")}
    shared = sorted(same)
    if shared and first["arm"] != _reference(own):
        pair = _scores(own, shared), _scores(reference, shared)
        found = paired_comparison(*pair, patients, higher_is_better=True, seed=BOOTSTRAP_SEED).difference
        row["minus_supervised"] = {"mean": found.mean, "low": found.low, "high": found.high, "seeds": len(shared)}
        row["minus_supervised"]["by_seed"] = (pair[0] - pair[1]).mean(axis=1).tolist()
    return row


def _scores(runs: dict[int, Result], seeds: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(seeds, images): PSNR."""
    return np.array([[one["psnr"] for one in runs[seed]["images"]] for seed in seeds], dtype=np.float64)


def ranking(results: Sequence[Result]) -> list[dict[str, Any]]:
    """For each release on which several recipes without clean targets were trained: does the criterion rank them?"""
    found = []
    groups = {(one["std"], one["clamped"], one["seed"]) for one in results}
    for std, clamped, seed in sorted(groups, key=str):
        here = [
            one
            for one in results
            if (one["std"], one["clamped"], one["seed"]) == (std, clamped, seed)
            and (one["kind"] in BLIND_KINDS or one["kind"] == "search")
            and not one["arm"].startswith("supervised")
        ]
        if len(here) > 1:
            found.append({"std": std, "clamped": clamped, "seed": seed, **_ranked(here)})
    return found


def _ranked(here: Sequence[Result]) -> dict[str, Any]:
    criterion = np.array([one["common"]["criterion"] for one in here])
    true = np.array([one["common"]["psnr"] for one in here])
    chosen = int(criterion.argmin())
    return {
        "recipes": {one["arm"]: [one["common"]["criterion"], one["common"]["psnr"]] for one in here},
        "chosen": here[chosen]["arm"],
        "regret_db": float(true.max() - true[chosen]),
        "rank_correlation": float(spearmanr(-criterion, true).statistic) if len(here) > 2 else None,
    }


def searched(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What learning rates reached on the validation images."""
    return [
        {
            "objective": one["arm"].partition(",")[0],
            "started": "started" in one["arm"],
            "learning_rate": one["learning_rate"],
            "epochs": one["epochs"],
            "own_criterion": min(loss for loss, _ in one["by_epoch"]),
            "validation_psnr": one["common"]["psnr"],
        }
        for one in results
        if one["kind"] == "search"
    ]


def lines(record: dict[str, Any]) -> list[list[str]]:
    """The table: a row for each level and arm."""
    header = [
        "noise",
        "clamp",
        "objective",
        "seeds",
        "PSNR, dB",
        "less than supervised, dB",
        "passes",
        "choice loses, dB",
    ]
    found = [header]
    for row in record["arms"]:
        difference, psnr = row.get("minus_supervised"), row["psnr"]
        gaps = [one["gap_db"] for one in row["choice"].values() if one is not None]
        less = "" if difference is None else _text(-difference["mean"], -difference["high"], -difference["low"])
        found.append(
            [
                f"{row['std']:g}",
                "yes" if row["clamped"] else "no",
                row["arm"],
                str(len(row["seeds"])),
                _text(psnr["mean"], psnr["low"], psnr["high"]),
                less,
                str(row["epochs"]),
                f"{max(gaps):.3f}" if gaps else "",
            ]
        )
    return found


def _text(mean: float, low: float, high: float) -> str:
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def draw(record: dict[str, Any]) -> None:
    """Put the table on its page, between its marks."""
    header, *rows = lines(record)
    drawn = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
    PAGE.write_text(MARK.join([before, "\n" + "\n".join(drawn) + "\n", after]), encoding="utf-8")
