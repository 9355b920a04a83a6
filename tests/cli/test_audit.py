"""veilray audit: a planted leak is found and stops at the gate; what cannot be audited is one clear line."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch
from tests.command_line import done, veilray
from tests.exchange.sites import make_sites
from tests.privacy.alexnet import random_weights

from veilray.cli.auditing import AuditRequest, _attacks, plan_audit
from veilray.cohort.cohort import Cohort
from veilray.files import sha256_file
from veilray.metrics import lpips
from veilray.privacy import extent, restorers
from veilray.privacy.catalogue import ATTRIBUTES, RECONSTRUCTION, REIDENTIFICATION
from veilray.privacy.results import read_audit

POLICY = """
[[limit]]
attack = "linkage"
metric = "top_1_patch_16"
at_most = 0.6
fewest_patients = 10
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return path


def _release(cohort: Path, out: Path, *options: object) -> Path:
    done("obfuscate", cohort, "--out", out, *options)
    return out


@pytest.mark.slow
def test_a_planted_leak_is_stopped_and_overwhelming_noise_is_not(
    flow_cohort: Path, tmp_path: Path, policy: Path
) -> None:
    make_sites(tmp_path / "keys")
    options = ["--originals", flow_cohort, "--quick", "--gate", policy]
    seal = [
        "--keys",
        tmp_path / "keys" / "one",
        "--to",
        "two",
        "--override-name",
        "A. Chief",
        "--override-reason",
        "test",
    ]

    leaking = _release(flow_cohort, tmp_path / "leaking", "--std", 0.02)
    stopped = veilray("audit", leaking, *options, "--out", tmp_path / "bad")
    assert stopped.status == 4
    assert "gate not passed: linkage of release, noise 0.02" in stopped.lines[-1]
    assert (tmp_path / "bad" / "audit.html").is_file()
    refused = veilray("seal", leaking, "--out", tmp_path / "a.veil", *seal, "--audit", tmp_path / "bad")
    assert (refused.status, (tmp_path / "a.veil").exists()) == (4, False)
    assert "did not pass its gate" in refused.err

    hidden = _release(flow_cohort, tmp_path / "hidden", "--std", 9)
    passed = done("audit", hidden, *options, "--out", tmp_path / "good")
    assert "gate: no tested attack exceeded its limit" in passed.out
    assert "safe" not in passed.out
    said = done("seal", hidden, "--out", tmp_path / "b.veil", *seal, "--audit", tmp_path / "good")
    assert "audit: no tested attack exceeded its limit (1 limits), by a policy that --gate did not name" in said.out
    named = ["--audit", tmp_path / "good", "--gate", policy]
    assert f"by {policy} (SHA-256" in done("seal", hidden, "--out", tmp_path / "d.veil", *seal, *named).out
    policy.write_text(POLICY.replace("0.6", "0.5"))
    refused = veilray("seal", hidden, "--out", tmp_path / "e.veil", *seal, *named)
    assert (refused.status, (tmp_path / "e.veil").exists()) == (4, False)
    assert "was judged by another policy" in refused.err
    other = veilray("seal", leaking, "--out", tmp_path / "c.veil", *seal, "--audit", tmp_path / "good")
    assert other.status == 4
    assert "another release" in other.err


@pytest.mark.slow
def test_noise_that_hides_nothing_is_stopped_too(flow_cohort: Path, tmp_path: Path, policy: Path) -> None:
    leaking = _release(flow_cohort, tmp_path / "leaking", "--std", 0.001)
    options = ["--originals", flow_cohort, "--quick", "--gate", policy, "--out", tmp_path / "a"]
    stopped = veilray("audit", leaking, *options)
    assert stopped.status == 4, stopped.err
    assert "gate not passed: linkage of release, noise 0.001" in stopped.lines[-1]
    assert (tmp_path / "a" / "audit.html").is_file()


@pytest.mark.slow
def test_levels_are_tried_without_a_release_and_a_second_run_computes_nothing(
    flow_cohort: Path, tmp_path: Path
) -> None:
    words = ["audit", "--originals", flow_cohort, "--out", tmp_path / "a", "--std", "0.1,0.3", "--quick"]
    first = done(*words)
    assert "finds the right one of 40 originals, share of the images: at least 83.2 % (measured 100 %" in first.out
    assert "from only 20 patients, fewer than 30" in first.out
    audit = read_audit(tmp_path / "a")
    assert list(audit.audited.variants) == ["original", "noise 0.1", "noise 0.3"]
    assert {one.attack for one in audit.results} >= {"linkage", "reconstruction", "re-identification"}
    assert all(one.low is None or one.low <= one.value <= (one.high or 0) + 1e-9 for one in audit.results)
    second = veilray(*words)
    assert second.err.count("from an earlier run") == 12
    page = (tmp_path / "a" / "audit.html").read_text()
    assert "<script" not in page
    assert 'src="data:' not in page  # no picture of anybody, unless it was asked for
    assert not (tmp_path / "a" / "private").exists()
    names = {json.loads((flow_cohort / "cohort.json").read_text())["digest"], "0001"}
    assert not any(name in page for name in names)


@pytest.mark.slow
def test_a_denoiser_and_a_ledger_are_taken_into_account(flow_cohort: Path, flow_run: Path, tmp_path: Path) -> None:
    make_sites(tmp_path / "keys")
    keys = ["--keys", tmp_path / "keys" / "one"]
    release = _release(flow_cohort, tmp_path / "r", "--std", 0.2, *keys, "--receiver", "two")
    again = _release(flow_cohort, tmp_path / "s", "--std", 0.3, *keys, "--receiver", "two")
    options = ["--originals", flow_cohort, "--out", tmp_path / "a", "--quick", "--show-images", "--denoiser", flow_run]
    done("audit", release, again, *options, *keys)
    audit = read_audit(tmp_path / "a")
    assert audit.audited.variants["release, noise 0.2, denoised"] == "denoised"
    assert audit.composition is not None
    assert audit.composition.source == "the ledger"
    assert audit.composition.least_std == pytest.approx(0.2)  # nested: the noisier one says nothing more
    assert len(audit.audited.release_digests) == 2
    assert 'src="data:' in (tmp_path / "a" / "audit.html").read_text()
    assert not (tmp_path / "a" / "private").exists()

    limit = '[[limit]]\nattack = "re-identification"\nmetric = "auc"\nat_most = 1.0\n'
    limit += "fewest_patients = 5\nallow_weak = true\n"
    gate = tmp_path / "policy.toml"
    gate.write_text(limit)
    stopped = veilray("audit", release, again, *options, *keys, "--gate", gate)
    assert stopped.status == 4
    assert "was not measured on release, noise 0.2, denoised: under --quick" in stopped.lines[-1]
    assert "name kinds = ['noisy'] in the limit, or run without --quick" in stopped.lines[-1]
    gate.write_text(f'{limit}kinds = ["noisy"]\n')
    done("audit", release, again, *options, *keys, "--gate", gate)


@pytest.mark.slow
def test_full_restores_each_protection_by_a_network_of_its_own_and_goes_on(
    flow_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = functools.partial(restorers.restored_variant, steps=3)
    monkeypatch.setattr(restorers, "restored_variant", short)
    monkeypatch.setattr(extent, "FULL", dataclasses.replace(extent.FULL, guessed=1 << 10))
    words = ["audit", "--originals", flow_cohort, "--out", tmp_path / "a", "--std", "0.2", "--full", "--images", 12]
    done(*words)
    audit = read_audit(tmp_path / "a")
    protections = [name for name, kind in audit.audited.variants.items() if kind in ("noisy", "baseline")]
    protections = [name for name in protections if name not in audit.audited.restored]
    assert len(protections) == 8
    assert sorted(audit.audited.restored.values()) == sorted(protections)
    measured = {one.variant for one in audit.results if (one.attack, one.metric) == ("reconstruction", "psnr")}
    assert {f"{name}, restored" for name in protections} <= measured
    assert "The frontier" in (tmp_path / "a" / "audit.html").read_text()
    assert "28 images, so that the audit takes less time" in audit.audited.left_out[-1]
    second = veilray(*words)
    assert second.err.count("from an earlier run") == 4 * len(audit.audited.variants)


def test_labels_that_contradict_each_other_are_refused(flow_cohort: Path, tmp_path: Path) -> None:
    name = Cohort.open(flow_cohort).image_id(0)
    labels = tmp_path / "labels.csv"
    labels.write_text(f"image_id,sex\n{name},M\n{name},F\n")
    words = ["audit", "--std", "0.2", "--originals", flow_cohort, "--out", tmp_path / "a", "--labels", labels]
    result = veilray(*words)
    assert (result.status, len(result.lines)) == (3, 1), result.err
    assert "different things" in result.err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--std", "0.2", "--quick", "--full"], 2, "exclude each other"),
        ([], 2, "nothing to attack"),
        (["--std", "0.2,x"], 2, "--std 0.2,x"),
        (["--std", "0"], 2, "above 0"),
        (["--std", "0.2", "--gate", "missing.toml"], 2, "no such file"),
        (["--std", "0.2", "--labels", "missing.csv"], 3, "missing.csv"),
        (["--std", "0.2", "--denoiser", "missing"], 2, "missing"),
        (["--std", "0.2", "--model", "missing"], 3, "missing"),
        (["missing"], 3, "not a release"),
    ],
)
def test_what_cannot_be_audited_is_one_clear_line(
    flow_cohort: Path, tmp_path: Path, words: list[str], status: int, said: str
) -> None:
    result = veilray("audit", *words, "--originals", flow_cohort, "--out", tmp_path / "a")
    assert (result.status, len(result.lines)) == (status, 1), result.err
    assert said in result.err


def test_a_policy_on_what_there_is_not_is_found_before_anything_is_attacked(flow_cohort: Path, tmp_path: Path) -> None:
    gate = tmp_path / "policy.toml"
    for limit, said in (
        ('attack = "linkage"\nmetric = "top_2"', "linkage has no metric top_2"),
        ('attack = "linkage"\nmetric = "top_1"\nvariant = "noise 0.9"', "no images called noise 0.9"),
    ):
        gate.write_text(f"[[limit]]\n{limit}\nat_most = 0.5\n")
        words = ["audit", "--std", "0.2", "--originals", flow_cohort, "--out", tmp_path / "a", "--gate", gate]
        result = veilray(*words)
        assert (result.status, len(result.lines)) == (2, 1), result.err
        assert said in result.err
        assert not (tmp_path / "a" / "attacks").exists()


@pytest.mark.slow
def test_images_that_were_left_out_stop_a_release_and_are_said(flow_cohort: Path, tmp_path: Path, policy: Path) -> None:
    release = _release(flow_cohort, tmp_path / "r", "--std", 9)
    words = ["audit", release, "--originals", flow_cohort, "--out", tmp_path / "a", "--quick", "--images", 30]
    stopped = veilray(*words, "--gate", policy)
    assert stopped.status == 4
    assert "30 of 40 images of release, noise 9" in stopped.lines[-1]
    assert "Of release, noise 9: 30 of 40 images were audited." in stopped.out
    assert "Left out: 10 images, so that the audit takes less time" in stopped.out
    policy.write_text(f"allow_left_out = true\n{POLICY}")
    assert "gate: no tested attack" in done(*words, "--gate", policy).out


def test_what_the_ledger_does_not_know_is_composed_with_what_it_does(flow_cohort: Path, tmp_path: Path) -> None:
    make_sites(tmp_path / "keys")
    keys = ["--keys", tmp_path / "keys" / "one"]
    _release(flow_cohort, tmp_path / "r", "--std", 0.3, *keys, "--receiver", "two")
    unknown = _release(flow_cohort, tmp_path / "s", "--std", 0.4)
    composed = (0.3**-2 + 0.4**-2) ** -0.5
    levels: tuple[float, ...]
    for releases, levels in (([unknown], ()), ([], (0.4, 0.5))):
        asked = AuditRequest(
            originals=flow_cohort,
            releases=releases,
            levels=levels,
            mean=0.1,
            extent=extent.QUICK,
            out=tmp_path / "a",
            keys=tmp_path / "keys" / "one",
        )
        plan = plan_audit(asked).plan
        assert plan.composition is not None
        assert plan.composition.least_std == pytest.approx(composed)
        assert "it does not know" in plan.composition.source


def test_an_alexnet_in_the_cache_serves_the_attackers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blind = {one.name: one.inputs for one in _attacks(extent.QUICK, None)}
    assert blind[REIDENTIFICATION] == blind[ATTRIBUTES] == "no AlexNet"
    cached = tmp_path / "veilray" / lpips.BACKBONE_URL.rpartition("/")[2]
    cached.parent.mkdir()
    torch.save(random_weights(), cached)
    monkeypatch.setattr(lpips, "BACKBONE_SHA256", sha256_file(cached)[:8])
    seeing = {one.name: one.inputs for one in _attacks(extent.QUICK, None)}
    assert seeing[REIDENTIFICATION] == seeing[ATTRIBUTES] == sha256_file(cached)
    assert seeing[RECONSTRUCTION] not in ("no LPIPS", blind[REIDENTIFICATION])


def test_a_release_of_another_cohort_is_refused(flow_cohort: Path, tmp_path: Path) -> None:
    release = _release(flow_cohort, tmp_path / "r", "--std", 0.2)
    record = json.loads((release / "release.json").read_text())
    (flow_cohort / "releases" / f"{record['release_id']}.csv").unlink()
    result = veilray("audit", release, "--originals", flow_cohort, "--out", tmp_path / "a")
    assert (result.status, len(result.lines)) == (3, 1)
    assert "no list of pseudonyms" in result.err


def test_results_do_not_go_into_the_release(flow_cohort: Path, tmp_path: Path) -> None:
    result = veilray("audit", "--std", "0.2", "--originals", flow_cohort, "--out", flow_cohort / "a")
    assert (result.status, len(result.lines)) == (2, 1)
