"""A model that Site Two trained on a noisy release is evaluated at Site One, and means alone return."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.command_line import done, make_cohort, split_file, veilray
from tests.exchange.sites import make_sites
from tests.training.small import small_config, write_images

from veilray.cohort.cohort import Cohort
from veilray.cohort.release import Release
from veilray.evaluation.results import PER_IMAGE, SUMMARY, read_summary
from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.sealing.evaluation_export import EVALUATION_FILES, EvaluationRecord
from veilray.files import read_json, sha256_file, write_json
from veilray.inference.denoiser import Denoiser
from veilray.models.build import build_model
from veilray.models.weights import save_weights
from veilray.training.run import RunFolder

EVALUATE = ["--no-download", "--device", "cpu"]


@dataclass(frozen=True)
class Exchange:
    """A cohort, its release for site two, a run on that, its model back at site one, and the evaluation there."""

    root: Path
    cohort: Path
    release: Path
    run: Path
    model: Path
    evaluation: Path
    said: str


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    root = tmp_path_factory.mktemp("exchange")
    make_sites(root / "keys")
    write_images(root / "png", patients=60)
    sets = split_file(root / "split.csv", root / "png", ("train", "train", "validation", "test", "test"))
    done("import", root / "png", "--out", root / "cohort", "--size", 32, "--split", sets, "--workers", 1)
    for_two = ["--keys", root / "keys/one", "--receiver", "two", "--std", "0.2"]
    done("obfuscate", root / "cohort", "--out", root / "release", *for_two)
    run_on(root / "release", root / "run")
    seal(root, "two", "run", "one", "model")
    words = ["--data", root / "release", "--originals", root / "cohort", "--out", root / "evaluation", *EVALUATE]
    said = done("evaluate", root / "model", *words).out
    names = ("cohort", "release", "run", "model", "evaluation")
    return Exchange(root, *(root / name for name in names), said=said)


def run_on(release: Path, folder: Path) -> None:
    """A run as training on a release leaves it, with weights as they were drawn."""
    config = small_config(noise={"mean": 0.1, "std": 0.2})
    run, data = RunFolder.create(folder, config), Release.open(release)
    torch.manual_seed(1)
    save_weights(run.best_weights, build_model(config.model), noise=config.noise)
    counts = {f"n_{name}{of}": 7 for name in ("train", "validation", "test") for of in ("", "_patients")}
    facts: dict[str, Any] = {"release_id": data.record.release_id, "cohort_digest": data.digest, **counts}
    run.write_environment(facts, device=torch.device("cpu"))


def seal(root: Path, sender: str, folder: str, receiver: str, name: str) -> str:
    """Seal a folder by one site, and open it at another; what sealing said."""
    keys = root / "keys"
    said = done("seal", root / folder, "--out", root / f"{name}.veil", "--keys", keys / sender, "--to", receiver).out
    done("open", root / f"{name}.veil", "--out", root / name, "--keys", keys / receiver)
    return said


@pytest.mark.slow
def test_the_scores_are_those_of_the_released_images_against_their_originals(exchange: Exchange) -> None:
    summary, release = read_summary(exchange.evaluation), Release.open(exchange.release)
    cohort = Cohort.open(exchange.cohort)
    (listed,) = (exchange.cohort / "releases").glob("*.csv")
    with listed.open(newline="") as stream:
        original = {row["image_id"]: row["original_image_id"] for row in csv.DictReader(stream)}
    row_of = {image_id: row for row, image_id in enumerate(cohort.image_ids)}
    denoiser, found = Denoiser.load(exchange.run, device="cpu"), []
    for row in release.rows("test"):
        clean = cohort.gather(np.array([row_of[original[release.image_id(int(row))]]]))[0]
        restored = denoiser(release.gather_noisy(np.array([row]))[0], mean=0.1)
        found.append(-10 * np.log10(np.mean((restored.astype(np.float64) - clean) ** 2)))
    psnr = summary.methods["model"]["psnr"]
    assert psnr is not None
    assert summary.n_images == len(found) == 48
    assert psnr.mean == pytest.approx(np.mean(found), abs=1e-4)
    assert (summary.release_id, summary.cohort_digest) == (release.record.release_id, release.digest)
    assert summary.weights_sha256 == sha256_file(exchange.model / "weights.safetensors")
    assert f"{len(found)} test images" in exchange.said
    assert (exchange.evaluation / "report.html").is_file()


@pytest.mark.slow
def test_a_model_of_a_release_is_scored_on_nothing_else(exchange: Exchange, tmp_path: Path) -> None:
    release, cohort = exchange.release, exchange.cohort
    done("obfuscate", cohort, "--out", tmp_path / "other", "--std", "0.2")
    wrong: list[tuple[list[object], int, str]] = [
        (["--data", cohort, "--out", tmp_path / "e"], 3, "--data RELEASE --originals COHORT"),
        (["--data", tmp_path / "other", "--originals", cohort, "--out", tmp_path / "e"], 3, "was trained on release"),
        (["--data", cohort, "--originals", cohort, "--out", tmp_path / "e"], 2, "leave --originals out"),
        (["--data", release, "--originals", make_cohort(tmp_path / "x"), "--out", tmp_path / "e"], 3, "no list"),
        (["--data", release, "--originals", cohort], 2, "--out is missing"),
        (["--data", release, "--out", tmp_path / "e"], 3, "noisy images alone, and scores need the originals"),
        (["--data", release, "--originals", cohort, "--out", exchange.model / "e"], 2, "outside"),
    ]
    for words, status, message in wrong:
        result = veilray("evaluate", exchange.model, *words, *EVALUATE)
        assert (result.status, len(result.lines)) == (status, 1), result.err
        assert message in result.err
    assert not (tmp_path / "e").exists()


@pytest.mark.slow
def test_where_there_are_no_originals_a_run_is_told_what_runs_compare_by(exchange: Exchange) -> None:
    run = Path(shutil.copytree(exchange.run, exchange.root / "at-the-centre"))
    before = sorted(run.rglob("*"))
    lines = done("evaluate", run, "--data", exchange.release, *EVALUATE).out.splitlines()
    assert lines[0].startswith("criterion on ")
    assert "(censored_sure; smaller is better" in lines[0]
    assert lines[1].startswith("scores need the originals")
    assert sorted(run.rglob("*")) == before
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('objective = "auto"', 'objective = "noise2noise"'))
    assert done("evaluate", run, "--data", exchange.release, *EVALUATE).out.splitlines() == lines
    for more in (["--std", "0.1"], ["--methods", "nlm"]):
        assert veilray("evaluate", run, "--data", exchange.release, *more, *EVALUATE).status != 0


@pytest.mark.slow
def test_a_run_is_scored_on_its_noisy_release_too(exchange: Exchange) -> None:
    own = Path(shutil.copytree(exchange.run, exchange.root / "own-run"))
    config = (own / "config.toml").read_text()
    assert 'objective = "auto"' in config
    # By which objective it was trained, and that two releases stood beside each other then, does not matter.
    (own / "config.toml").write_text(config.replace('objective = "auto"', 'objective = "noise2noise"'))
    done("evaluate", own, "--data", exchange.release, "--originals", exchange.cohort, *EVALUATE)
    assert read_summary(own).methods == read_summary(exchange.evaluation).methods


@pytest.mark.slow
def test_the_scores_are_compared_with_and_without_the_originals(exchange: Exchange, tmp_path: Path) -> None:
    words = ["compare", exchange.evaluation, "--out", tmp_path / "report.html"]
    done(*words, "--data", exchange.release, "--originals", exchange.cohort)
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64") >= 3
    assert "no pictures" in done(*words).err
    assert veilray(*words, "--originals", exchange.cohort).status == 2


@pytest.mark.slow
def test_a_model_of_any_objective_is_scored(exchange: Exchange, tmp_path: Path) -> None:
    model = Path(shutil.copytree(exchange.model, tmp_path / "model"))
    record = read_json(model / "model.json")
    record["config"]["train"]["objective"] = "noise2noise"
    write_json(model / "model.json", record)
    words = ["--data", exchange.release, "--originals", exchange.cohort, "--out", tmp_path / "e", *EVALUATE]
    done("evaluate", model, *words)
    assert read_summary(tmp_path / "e").methods == read_summary(exchange.evaluation).methods


def test_an_opened_model_that_was_altered_is_an_error(exchange: Exchange, tmp_path: Path) -> None:
    words = ["--data", exchange.release, "--originals", exchange.cohort, "--out", tmp_path / "e", *EVALUATE]
    told = read_json(exchange.model / "model.json")["config"]
    for name, changes, message in (
        ("a", {"weights_sha256": "0" * 64}, "model.json"),
        ("b", {"config": {"train": {"epochs": -1}}}, "model.json"),
        ("c", {"config": told | {"split": {"rule": "paper", "seed": 3}}}, "the paper's split"),
    ):
        model = Path(shutil.copytree(exchange.model, tmp_path / name))
        write_json(model / "model.json", read_json(model / "model.json") | changes)
        result = veilray("evaluate", model, *words)
        assert (result.status, len(result.lines)) == (3, 1)
        assert message in result.err
    (model / "model.json").write_text("{" + " " * 2**20 + "}")
    assert "larger than" in veilray("evaluate", model, *words).err


def test_means_return_and_nothing_of_an_image(exchange: Exchange) -> None:
    root = exchange.root
    said = seal(root, "one", "evaluation", "two", "returned")
    assert "evaluation, 2 files" in said
    assert "Evaluations of this release that left: 1." in said
    assert {file.name for file in (root / "returned").iterdir()} == set(EVALUATION_FILES)
    record = EvaluationRecord.model_validate(read_json(root / "returned/evaluation.json"))
    summary = read_summary(exchange.evaluation)
    assert (record.images, record.patients) == (summary.n_images, summary.n_patients)
    assert set(record.scores) == {"noisy", "model"}
    for method, metrics in record.scores.items():
        for metric, interval in metrics.items():
            exact, digits = summary.methods[method][metric], 2 if metric.startswith("psnr") else 3
            assert exact is not None
            assert interval.model_dump() == {end: round(value, digits) for end, value in exact.model_dump().items()}
    page = (root / "returned/EVALUATION.md").read_text()
    assert f"{record.scores['model']['psnr'].mean:.2f} (" in page
    texts = [file.read_text() for file in (root / "returned").iterdir()]
    cohort = Cohort.open(exchange.cohort)
    stays = {*cohort.image_ids, *cohort.patient_ids, cohort.digest, str(root)}
    stays |= {*Release.open(exchange.release).image_ids, *Release.open(exchange.release).patient_ids}
    with (exchange.evaluation / PER_IMAGE).open(newline="") as stream:
        stays |= {row["psnr"] for row in csv.DictReader(stream)}
    assert not [text for text in stays if any(text in one for one in texts)]


def test_the_ledger_keeps_what_returned_and_lets_it_go_to_the_releases_receiver_alone(exchange: Exchange) -> None:
    root, keys = exchange.root, exchange.root / "keys/one"
    KeyFolder.open(keys).pin(KeyFolder.open(root / "keys/stranger").card)
    refused = veilray(
        *("seal", exchange.evaluation, "--out", root / "s.veil", "--keys", keys), "--to", "two", "--to", "stranger"
    )
    assert (refused.status, len(refused.lines), (root / "s.veil").exists()) == (4, 1, False)
    assert "not made for stranger" in refused.err
    before = done("ledger", "list", keys, "--events").out.count("evaluation sealed")
    again = done("seal", exchange.evaluation, "--out", root / "t.veil", "--keys", keys, "--to", "two").out
    assert f"Evaluations of this release that left: {before + 1}." in again
    events = done("ledger", "list", keys, "--events").out
    summary = read_summary(exchange.evaluation)
    assert f"{summary.release_id} evaluation sealed: of weights {summary.weights_sha256}, for two" in events
    assert events.count("evaluation sealed") == before + 1


def test_an_evaluation_on_few_patients_stays(exchange: Exchange, tmp_path: Path) -> None:
    few = Path(shutil.copytree(exchange.evaluation, tmp_path / "few"))
    for change, message in (({"n_patients": 9}, "on 9 patients"), ({"weights_sha256": ""}, "which weights")):
        summary = read_json(exchange.evaluation / SUMMARY) | change
        (few / SUMMARY).write_text(json.dumps(summary))
        result = veilray(
            *("seal", few, "--out", tmp_path / "few.veil", "--keys", exchange.root / "keys/one", "--to", "two")
        )
        assert (result.status, len(result.lines)) == (4 if "patients" in message else 3, 1)
        assert message in result.err
    assert not (tmp_path / "few.veil").exists()


def test_an_evaluation_on_a_cohort_is_noted_under_its_bundle(exchange: Exchange, tmp_path: Path) -> None:
    other = Path(shutil.copytree(exchange.model, tmp_path / "unknown"))
    record = read_json(other / "model.json") | {"release": None}
    write_json(other / "model.json", record)
    said = done("evaluate", other, "--data", exchange.cohort, "--out", tmp_path / "e", *EVALUATE)
    assert "whether some images are in both is not known" in said.out
    keys = exchange.root / "keys/one"
    sealed = done("seal", tmp_path / "e", "--out", tmp_path / "e.veil", "--keys", keys, "--to", "two").out
    bundle = sealed.splitlines()[-1].split()[1].rstrip(",")
    assert f"{bundle} evaluation sealed" in done("ledger", "list", keys, "--events").out
