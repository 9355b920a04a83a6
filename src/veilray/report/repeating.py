"""The shell commands that repeat a report: training, evaluation and the page."""

from __future__ import annotations

import shlex
from pathlib import Path, PurePosixPath

from veilray.evaluation.comparison import Comparison, Run
from veilray.evaluation.levels import level_name
from veilray.models.shipped.find import SHIPPED
from veilray.report.protocol import run_names


def commands(comparison: Comparison) -> list[str]:
    """Shell commands that repeat the runs, their evaluation and this page from the runs' configurations."""
    names = run_names(comparison.runs)
    cohort = Path(comparison.cohort).name or "COHORT"
    lines: list[str] = []
    again = []
    for run in comparison.runs:
        name = names[run.folder]
        trained = Path(str(run.environment.get("cohort") or cohort)).name or "COHORT"
        evaluation = ["--data", cohort, "--split", comparison.split, *_methods(run)]
        if not run.summary.model:
            lines.append(_line("train", f"{name}/config.toml", "--data", trained, "--out", f"{name}-again"))
            lines.append(_line("evaluate", f"{name}-again", *evaluation))
            again.append(f"{name}-again")
            continue
        subject = str(run.source).removeprefix(SHIPPED)
        if isinstance(run.source, Path):
            subject = f"{run.source.name}-again"
            lines.append(_line("train", f"{run.source.name}/config.toml", "--data", trained, "--out", subject))
        results = PurePosixPath("again") / PurePosixPath(name)
        # Where the results lie under the name of their level, that name comes by itself.
        out = results.parent if _level(run) else results
        lines.append(_line("evaluate", subject, *evaluation, *_level(run), "--out", str(out)))
        again.append(str(results))
    return [*dict.fromkeys(lines), _line("compare", *again, "--out", "report.html")]


def _level(run: Run) -> list[str]:
    """How to ask for the noise of results that lie under its name; nothing for other results."""
    noise = run.summary.noise
    if run.folder.name != level_name(noise):
        return []
    return ["--std", noise.std_text, "--mean", noise.mean_text]


def _methods(run: Run) -> list[str]:
    return ["--methods", ",".join(run.summary.model_minus)] if run.summary.model_minus else []


def _line(command: str, *words: str) -> str:
    return " ".join(["veilray", command, *(shlex.quote(word) for word in words)])
