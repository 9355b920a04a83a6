"""The privacy audit of real radiographs, and what docs/explanation/privacy-audit.md shows of it.

python benchmarks/audit.py --real /path/to [--denoiser RUN] [--quick | --full]
python benchmarks/audit.py --pages

`--real` holds `data/nih256`, `data/index.csv` (file, sex, age, view_position) and
`weights/alexnet_features.safetensors`. Attacks noise of 0.1, 0.2 and 0.3 with mean 0.1, by `veilray audit`, in a folder
that is kept, so that a run that was stopped goes on. Records `results/audit.json`: the figures without any image.
`--pages` only writes the page anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, save
from veilray.privacy.results import Audit, read_audit
from veilray.report.audit_text import figure, gate_sentence, headline, interval_text, metric_name, value_text, verdicts

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "explanation" / "privacy-audit.md"
FIGURE = DOCS / "images" / "audit.svg"
RECORD = RESULTS / "audit.json"
LEVELS = "0.1,0.2,0.3"
BEGIN, END = "<!-- figures: made by benchmarks/audit.py -->", "<!-- end of figures -->"


def main() -> None:
    """Audit, record, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder with data/ and weights/")
    parser.add_argument("--work", type=Path, default=Path("audit-work"), help="folder for the cohort and the audit")
    parser.add_argument("--denoiser", help="run or model whose output is attacked as well")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--pages", action="store_true", help="write the page from the record and measure nothing")
    options = parser.parse_args()
    if not options.pages:
        if options.real is None:
            parser.error("--real is missing")
        audit = measure(options)
        save("audit", {"audit": audit.model_dump(mode="json")})
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    write_page(Audit.model_validate(record["audit"]), record["hardware"])


def measure(options: argparse.Namespace) -> Audit:
    """Import the radiographs where that was not done, and audit them."""
    cohort, out = options.work / "cohort", options.work / "audit"
    if not cohort.is_dir():
        veilray("import", options.real / "data" / "nih256", "--out", cohort)
    words: list[object] = ["audit", "--originals", cohort, "--out", out, "--std", LEVELS]
    words += ["--labels", options.real / "data" / "index.csv"]
    words += ["--lpips-backbone", options.real / "weights" / "alexnet_features.safetensors"]
    words += ["--denoiser", options.denoiser] if options.denoiser else []
    words += [f"--{effort}" for effort in ("quick", "full") if getattr(options, effort)]
    veilray(*words)
    return read_audit(out)


def veilray(*words: object) -> None:
    """Run a command of Veilray."""
    command = [sys.executable, "-c", "from veilray.cli.main import run; run()", *map(str, words)]
    subprocess.run(command, check=True)


def write_page(audit: Audit, hardware: dict[str, Any]) -> None:
    """The figure, and the block of figures in the page between its marks."""
    drawn = draw(audit)
    text = "\n\n".join(filter(None, [*_opening(audit, hardware), drawn, *_tables(audit), _not_tested(audit)]))
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise SystemExit(f"{PAGE} has no place for the figures")
    PAGE.write_text(f"{before}{BEGIN}\n{_plain(text)}\n{END}{after}", encoding="utf-8")
    print(f"written: {PAGE}")


def _opening(audit: Audit, hardware: dict[str, Any]) -> list[str]:
    audited = audit.audited
    what = (
        f"{audited.n_images} radiographs of {audited.n_patients} patients, {audited.n_with_follow_ups} of them with "
        f"several, {audited.height} × {audited.width} pixels; {audit.effort} audit, seeds "
        f"{', '.join(map(str, audit.seeds))}, {hardware['device']}, {hardware['date']}, "
        f"{audit.seconds / 60:.1f} minutes of computation."
    )
    said = [f"**{one.attacker}** {' '.join(one.sentences)}" for one in verdicts(audit)]
    return [what, f"**Verdict.** {headline(audit)}", gate_sentence(audit), *said]


def _tables(audit: Audit) -> list[str]:
    """One table an attack: a row for each metric and attacker, a column for each kind of image."""
    found = []
    for attack in dict.fromkeys(one.attack for one in audit.results):
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for one in audit.results:
            if one.attack == attack and not one.attacker.startswith("part of"):
                text = figure(one)
                if one.predicted is not None:
                    text += f"; predicted {value_text(one.metric, one.predicted)}"
                rows.setdefault((metric_name(one.metric), one.attacker), {})[one.variant] = text
        variants = [name for name in audit.audited.variants if any(name in cells for cells in rows.values())]
        lines = [["figure", "attacker", *variants], ["---"] * (2 + len(variants))]
        lines += [[*key, *(cells.get(variant, "") for variant in variants)] for key, cells in rows.items()]
        found.append(f"### {attack.capitalize()}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return found


def _not_tested(audit: Audit) -> str:
    reasons = dict.fromkeys(f"- {one.attack}: {one.reason}." for one in audit.skipped)
    return "### Not tested in this run\n\n" + "\n".join(reasons) if reasons else ""


def draw(audit: Audit) -> str:
    """ROC curves among matched impostors and linkage by the size of a patch; the line that shows them in the page."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "audit", "font.size": 9})
    from matplotlib import pyplot as plt

    panels = [
        ("auc_matched", "Re-identification, alike in sex, view and age", "False-positive rate", "True-positive rate"),
        ("top_1_patch_16", "Linkage by a central patch", "Side of the patch, pixels", "Share found"),
    ]
    figures, axes = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    drawn = 0
    for axis, (metric, title, x_label, y_label) in zip(axes, panels, strict=True):
        lines = [one for one in audit.results if one.metric == metric and one.curve]
        if metric == "auc_matched":
            lines = [one for one in lines if one.attacker == "verification network"]
            axis.plot([0, 1], [0, 1], color="#888888", linewidth=0.8)
        for one in lines:
            points = one.curve or ()
            label = f"{one.variant}: {value_text(one.metric, one.value)} ({interval_text(one)})"
            axis.plot([x for x, _ in points], [y for _, y in points], label=label, linewidth=1.2)
            drawn += 1
        axis.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(0, 1.02))
        if lines:
            axis.legend(fontsize=7, loc="lower right")
    axes[1].set_xscale("log", base=2)
    if drawn:
        FIGURE.parent.mkdir(exist_ok=True)
        figures.savefig(FIGURE, metadata={"Date": None})
        print(f"written: {FIGURE}")
    plt.close(figures)
    return f"![ROC curves of re-identification, and linkage by a patch](../images/{FIGURE.name})" if drawn else ""


def _plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")


if __name__ == "__main__":
    main()
