"""Benchmarks: their scripts start, and every figure on record names what it was measured on."""

from __future__ import annotations

import ast
import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from veilray.models.shipped.find import shipped_model

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.rglob("*.py"))
WITH_OPTIONS = [
    path
    for path in SCRIPTS
    if (text := path.read_text(encoding="utf-8")).endswith("    main()\n")
    and ("ArgumentParser(" in text or "run_script(" in text)
]
RESULTS = sorted((BENCHMARKS / "results").glob("*"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_compiles_and_says_what_it_measures(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    assert ast.get_docstring(tree)


def test_there_are_scripts_and_results() -> None:
    assert len(WITH_OPTIONS) >= 6
    assert RESULTS


# Each as `python PATH --help` runs it, but all in one process: what takes time is the loading of torch.
HELP = """
import contextlib, io, json, runpy, sys
said, place = {}, list(sys.path)
for path in sys.argv[1:]:
    out = io.StringIO()
    sys.argv, sys.path[:] = [path, "--help"], [path.rpartition("/")[0], *place[1:]]
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            said[path] = [end.code, out.getvalue()]
print(json.dumps(said))
"""


@pytest.mark.slow
def test_help_works() -> None:
    words = [sys.executable, "-c", HELP, *map(str, WITH_OPTIONS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    for path in WITH_OPTIONS:
        status, shown = said[str(path)]
        assert (status, shown.startswith(f"usage: {path.name}")) == (0, True), shown


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_every_result_names_its_hardware(path: Path) -> None:
    assert path.suffix == ".json", "a record is JSON, whole and readable"
    record = json.loads(path.read_text(encoding="utf-8"))
    for fact in ("device", "platform", "python", "torch", "veilray", "date"):
        assert record["hardware"][fact], fact
    assert len(record) > 1, "a record without figures"
    assert (BENCHMARKS / f"{path.stem.partition('-')[0]}.py").is_file(), "a record that no script makes"


def test_records_of_what_ships_are_of_the_weights_that_ship() -> None:
    shipped = {name: shipped_model(name).card.weights_sha256 for name in ("default", "fast")}
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS}
    assert records["breaks"]["weights_sha256"] == shipped["default"]
    assert records["inventions"]["weights_sha256"]["default"] == shipped["default"]
    assert records["baselines"]["weights_sha256"][:2] == [shipped["default"], shipped["fast"]]


def test_make_bench_runs_scripts_that_exist() -> None:
    tree = ast.parse((BENCHMARKS / "run.py").read_text(encoding="utf-8"))
    names = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "SCRIPTS"
    )
    assert names
    for name in names:
        assert (BENCHMARKS / f"{name}.py").is_file(), name


def test_the_split_on_record_is_by_patient() -> None:
    with (BENCHMARKS / "splits" / "nih256.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["image_id"] for row in rows}) == len(rows)
    sets: dict[str, set[str]] = {}
    for row in rows:
        sets.setdefault(row["image_id"].partition("_")[0], set()).add(row["split"])
    assert {patient: found for patient, found in sets.items() if len(found) > 1} == {}
    assert set().union(*sets.values()) == {"train", "validation", "test"}
