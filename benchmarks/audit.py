"""The privacy audit of real radiographs, and what docs/explanation/privacy-audit.md shows of it.

python benchmarks/audit.py --real /path/to --denoiser default                       the audit: results/audit.json
python benchmarks/audit.py --real /path/to --denoiser default --hospital hannover   results/audit-hannover.json
python benchmarks/audit.py --real /path/to --full [--images 320]                    results/audit-full.json
python benchmarks/audit.py --real /path/to --denoiser default --quick               results/audit-quick.json
python benchmarks/audit.py --real /path/to --pairs                                  results/audit-pairs.json
python benchmarks/audit.py --pages

`--real` holds `data/nih256`, `data/hannover256`, `data/index.csv` (file, patient_id, sex, age, view_position) and
`weights/alexnet_features.safetensors`. Attacks noise of 0.1, 0.2 and 0.3 with mean 0.1, by `veilray audit`, in a folder
that is kept, so that a run that was stopped goes on. The records are the figures without any image. `--full` also
trains a small network (models/audited.toml), whose weights are then asked whom they were trained on. `--pairs`
counts the pairs of one patient's images, from the index alone. `--pages` only writes the page anew.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common import RESULTS, save
from hospitals import write_patients
from veilray.files import sha256_file
from veilray.privacy.audit import code_digest
from veilray.privacy.results import AttackResult, Audit, read_audit
from veilray.report.audit_figures import draw_frontier, frontier_points, utility_words
from veilray.report.audit_rows import rows, shown
from veilray.report.audit_text import ONE_DRAW, against_theory, alike, gate_lines, headline, highest_of, verdicts
from veilray.report.audit_values import figure, metric_words
from veilray.report.drawing import canvas, styled

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGE = DOCS / "explanation" / "privacy-audit.md"
CURVES = DOCS / "images" / "audit.svg"
FRONTIER = DOCS / "images" / "audit_frontier.svg"
LEVELS = "0.1,0.2,0.3"
HOSPITALS = {"nih": "nih256", "hannover": "hannover256"}
RECORDS = ("audit", "audit-hannover", "audit-full")
"""Each has a place in the page, between `<!-- NAME: made by benchmarks/audit.py -->` and `<!-- end of NAME -->`."""

PAIRS = "audit-pairs"
"""The record of how many pairs of one patient's images there are; a place in the page for each hospital."""
_MANY = 10
"""Patients with the most pairs, whose share of all is recorded."""


def main() -> None:
    """Audit, record, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="folder with data/ and weights/")
    parser.add_argument("--work", type=Path, default=Path("audit-work"), help="folder for the cohort and the audit")
    parser.add_argument("--hospital", choices=HOSPITALS, default="nih")
    parser.add_argument("--denoiser", help="run or model whose output is attacked as well")
    parser.add_argument("--images", type=int, help="so many images at most, those of patients with several first")
    parser.add_argument("--quick", action="store_true", help="records what it took alone, results/audit-quick.json")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--pairs", action="store_true", help="count pairs of one patient's images, and attack nothing")
    parser.add_argument("--pages", action="store_true", help="write the page from the records and measure nothing")
    options = parser.parse_args()
    if not options.pages:
        if options.real is None:
            parser.error("--real is missing")
        if options.pairs:
            save(PAIRS, pairs_of(options.real / "data" / "index.csv"))
            write_page()
            return
        name = "audit" + ("-hannover" if options.hospital == "hannover" else "") + ("-full" if options.full else "")
        audit, took = measure(options, name + ("-quick" if options.quick else ""))
        if options.quick:
            figures = {"n_images": audit.audited.n_images, "figures": len(audit.results)}
            save("audit-quick", {"code": audit.code, **figures, **took})
            return
        # The page of a full audit draws no curves, which are most of it.
        kept = _without_curves(audit) if options.full else audit
        save(name, {**took, "audit": kept.model_dump(mode="json")})
    write_page()


def measure(options: argparse.Namespace, name: str) -> tuple[Audit, dict[str, float | bool]]:
    """Import the radiographs where that was not done, and audit them; with what the audit took, in this run."""
    cohort, out = options.work / options.hospital, options.work / name
    resumed = out.is_dir()
    if not cohort.is_dir():
        import_radiographs(options, cohort)
    words: list[object] = ["audit", "--originals", cohort, "--out", out, "--std", LEVELS]
    words += ["--labels", options.real / "data" / "index.csv"]
    words += ["--lpips-backbone", options.real / "weights" / "alexnet_features.safetensors"]
    words += ["--denoiser", options.denoiser] if options.denoiser else []
    words += ["--images", options.images] if options.images else []
    words += [f"--{effort}" for effort in ("quick", "full") if getattr(options, effort)]
    if options.full:
        run = options.work / f"{options.hospital}-model"
        if not (run / "environment.json").is_file():
            veilray("train", HERE / "models" / "audited.toml", "--data", cohort, "--out", run)
        words += ["--model", run]
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    veilray(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    took = {"wall_seconds": time.monotonic() - began, "processor_seconds": processor}
    return read_audit(out), {"resumed": resumed, **{name: round(seconds, 1) for name, seconds in took.items()}}


def pairs_of(index: Path) -> dict[str, Any]:
    """Of each hospital, how many pairs of one patient's images there are, of what ages and of how few patients."""
    with index.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    found: dict[str, Any] = {"index_sha256": sha256_file(index)}
    for hospital, folder in HOSPITALS.items():
        ages: dict[str, list[str]] = {}
        for line in lines:
            if line["file"].startswith(f"{folder}/"):
                ages.setdefault(line["patient_id"], []).append(line["age"])
        each = [list(itertools.combinations(of_patient, 2)) for of_patient in ages.values()]
        known = [(float(one), float(other)) for pairs in each for one, other in pairs if one and other]
        counts = sorted(map(len, each), reverse=True)
        found[hospital] = {
            "patients": len(ages),
            "pairs": sum(counts),
            "of_known_ages": len(known),
            "of_ages_a_year_apart_at_most": sum(abs(one - other) <= 1.0 for one, other in known),
            f"of_{_MANY}_patients": sum(counts[:_MANY]),
        }
    return found


def _without_curves(audit: Audit) -> Audit:
    kept = [one.model_copy(update={"curve": None} if isinstance(one, AttackResult) else {}) for one in audit.outcomes]
    return audit.model_copy(update={"outcomes": tuple(kept)})


def import_radiographs(options: argparse.Namespace, cohort: Path) -> None:
    """A cohort of one hospital's radiographs; NIH by the committed split."""
    folder = HOSPITALS[options.hospital]
    words: list[object] = ["import", options.real / "data" / folder, "--out", cohort]
    if options.hospital == "nih":
        words += ["--split", HERE / "splits" / "nih256.csv"]
    else:  # the names of the files do not say it in NIH's way
        patients = write_patients(options.real / "data", folder, options.work / f"{folder}-patients.csv")
        words += ["--patients", patients]
    veilray(*words)


def veilray(*words: object) -> None:
    """Run a command of Veilray."""
    command = [sys.executable, "-c", "from veilray.cli.main import run; run()", *map(str, words)]
    subprocess.run(command, check=True)


def write_page() -> None:
    """The figures, and the blocks of the page between their marks."""
    page = PAGE.read_text(encoding="utf-8")
    for name in RECORDS:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            try:
                audit = Audit.model_validate(record["audit"])
            except ValidationError:
                print(f"{path} was recorded by an older audit; its place in the page stays until it is made anew")
                continue
            if audit.code != code_digest():
                print(f"{path} was recorded by other code ({audit.code[:12]}) than this ({code_digest()[:12]})")
            page = _replaced(page, name, "\n\n".join(filter(None, _block(name, audit, record))))
    path = RESULTS / f"{PAIRS}.json"
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        for hospital in HOSPITALS:
            page = _replaced(page, f"{PAIRS} of {hospital}", _pairs_words(record[hospital]))
    PAGE.write_text(page, encoding="utf-8")
    print(f"written: {PAGE}")


def _replaced(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}: made by benchmarks/audit.py -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{PAGE} has no place for {name}")
    return f"{before}{begin}\n{_plain(text)}\n{end}{after}"


def _block(name: str, audit: Audit, record: dict[str, Any]) -> list[str]:
    """What stands in the page of one record."""
    if name == "audit-full":
        members = [one for one in audit.results if one.attack == "membership inference"]
        return [
            *_opening(audit, record)[:1],
            draw_full(audit),
            _frontier_table(audit),
            _listed(members),
            _not_tested(audit),
        ]
    drawn = [draw(audit)] if name == "audit" else []
    return [*_opening(audit, record), *drawn, *_tables(audit), _not_tested(audit)]


def _opening(audit: Audit, record: dict[str, Any]) -> list[str]:
    audited, hardware = audit.audited, record["hardware"]
    part = " in the last of several parts" if record.get("resumed") else ""
    what = (
        f"{audited.n_images} radiographs of {audited.n_patients} patients, {audited.n_with_follow_ups} of them with "
        f"several, {audited.height} × {audited.width} pixels; {audit.effort} audit, seeds "
        f"{', '.join(map(str, audit.seeds))}, {hardware['device']}, {hardware['date']}, "
        f"{audit.seconds / 60:.1f} minutes of computation{part}, code {audit.code[:12]}."
    )
    said = [f"**{one.attacker}** {' '.join(one.sentences)}" for one in verdicts(audit)]
    chosen = (
        f"Each verdict takes the highest of several figures, that on re-identification of {highest_of(audit)}; its "
        f"interval does not allow for its having been chosen. {ONE_DRAW}"
    )
    return [what, f"**Verdict.** {headline(audit)}", *gate_lines(audit), *said, chosen]


def _pairs_words(counted: dict[str, int]) -> str:
    """What a hospital's pairs are like: their ages where they are known, else of how few patients they are."""
    pairs, many = counted["pairs"], counted[f"of_{_MANY}_patients"]
    if counted["of_known_ages"]:
        near = counted["of_ages_a_year_apart_at_most"]
        return (
            f"Of {counted['of_known_ages']:,} pairs of one patient's images with known ages, {near:,} are of ages that "
            "differ by one year at most."
        )
    share = 100.0 * many / pairs
    return (
        f"Of the {counted['patients']} patients of this hospital, {_MANY} supply {share:.0f} % of the {pairs:,} pairs "
        "of one patient's images."
    )


def _tables(audit: Audit) -> list[str]:
    """One table an attack: a row for each metric and attacker, a column for each kind of image."""
    found = []
    for attack in dict.fromkeys(one.attack for one in audit.results):
        found_rows = rows(shown(audit, attack))
        variants = [name for name in audit.audited.variants if any(name in one.by_variant for one in found_rows)]
        lines = [["figure", "attacker", "guessing", *variants], ["---"] * (3 + len(variants))]
        for row in found_rows:
            told = [row.by_variant[variant].plain if variant in row.by_variant else "" for variant in variants]
            lines.append([row.metric, row.attacker, row.chance, *told])
        found.append(f"### {attack.capitalize()}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
        if attack == "linkage" and (together := against_theory(audit)):
            found.append(together)
    return found


def _frontier_table(audit: Audit) -> str:
    """A line for each protection: what is seen of it, and the most that a network makes of that."""
    lines = [
        [
            "protection",
            "PSNR as it leaves",
            "PSNR restored",
            f"PSNR {utility_words(audit)}",
            "re-identification as it leaves, AUC",
            "restored, AUC",
        ],
        ["---"] * 6,
    ]
    metric = "auc_matched" if any(one.metric == "auc_matched" for one in audit.results) else "auc"

    def told(wanted: str, attack: str, variants: Sequence[str]) -> str:
        found = [
            one
            for one in audit.results
            if (one.attack, one.metric) == (attack, wanted) and one.variant in variants and one.role == "attacker"
        ]
        return figure(max(found, key=lambda one: one.value)) if found else ""

    for name in audit.audited.variants:
        if name not in audit.audited.restored:
            made = [one for one, source in audit.audited.restored.items() if source == name]
            seen = [told("psnr", "reconstruction", one) for one in ([name], made, [name, *made])]
            seen += [told(metric, "re-identification", one) for one in ([name], made)]
            lines.append([name, *seen])
    blind = [one for one in audit.results if one.role == "baseline" and one.metric == metric]
    lines += [[f"no image: {one.attacker}", "", "", "", figure(one), ""] for one in blind[:1]]
    return "### The frontier\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _listed(results: Sequence[AttackResult]) -> str:
    lines = [f"- {one.attacker}, {metric_words(one)}: {figure(one)}; {'; '.join(one.notes)}." for one in results]
    return "### Membership\n\n" + "\n".join(lines) if lines else ""


def _not_tested(audit: Audit) -> str:
    reasons = dict.fromkeys(f"- {one.attack}: {one.reason}." for one in audit.skipped)
    reasons |= dict.fromkeys(f"- labels: {known}." for known in audit.audited.labels_known)
    return "### Not tested in this run\n\n" + "\n".join(reasons) if reasons else ""


@styled
def draw(audit: Audit) -> str:
    """ROC curves among matched impostors and linkage by the size of a patch; the line that shows them in the page."""
    panels = [
        ("auc_matched", f"Re-identification, {alike(audit)}", "False-positive rate", "True-positive rate"),
        (
            "top_1_patch_16",
            "Linkage by a central patch",
            "Side of the patch, pixels (beside the names: 16)",
            "Share found",
        ),
    ]
    sheet, first = canvas(width=9.0, height=4.6)
    sheet.delaxes(first)
    axes = sheet.subplots(1, 2)
    for axis, (metric, title, x_label, y_label) in zip(axes, panels, strict=True):
        lines = [one for one in audit.results if one.metric == metric and one.curve]
        if metric == "auc_matched":
            lines = [one for one in lines if one.attacker == "verification network"]
            axis.plot([0, 1], [0, 1], color="#888888", linewidth=0.8)
        for one in lines:
            points = one.curve or ()
            axis.plot([x for x, _ in points], [y for _, y in points], label=f"{one.variant}: {figure(one)}", lw=1.2)
        axis.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(0, 1.02))
        if lines:
            axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    sides = sorted({x for line in axes[1].get_lines() for x in line.get_xdata()})
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks(sides, [f"{side:g}" for side in sides])
    axes[1].minorticks_off()
    return _saved(sheet, CURVES, "ROC curves of re-identification, and linkage by a patch")


@styled
def draw_full(audit: Audit) -> str:
    """The frontier; the line that shows it in the page, or nothing where there is none."""
    points = frontier_points(audit)
    if not points:
        return ""
    sheet, axes = canvas(width=7.3, height=4.2)
    draw_frontier(axes, audit, points)
    return _saved(sheet, FRONTIER, f"PSNR of each protection, {utility_words(audit)}, against re-identification")


def _saved(sheet: Any, path: Path, alt: str) -> str:
    import matplotlib as mpl

    path.parent.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": path.stem}):
        sheet.savefig(path, metadata={"Date": None})
    print(f"written: {path}")
    return f"![{alt}](../images/{path.name})"


def _plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")


if __name__ == "__main__":
    main()
