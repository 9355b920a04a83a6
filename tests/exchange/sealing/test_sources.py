"""What may be sealed, and what of a run folder stays behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from tests.command_line import done
from tests.exchange.sites import RELEASE, denoised_folder, make_sites

from veilray.errors import DataError, RefusedError, RunError, VeilrayError
from veilray.exchange.ledger.records import Image as LedgerImage
from veilray.exchange.ledger.records import Override, Release
from veilray.exchange.sealing.manifest import Kind
from veilray.exchange.sealing.model_export import export_model
from veilray.exchange.sealing.seal import seal
from veilray.exchange.sealing.sources import sealable
from veilray.files import sha256_file
from veilray.inference.denoiser import Denoiser
from veilray.models.build import build_model
from veilray.models.config import ModelConfig
from veilray.models.exported import MODEL_FILES, ModelRecord
from veilray.models.tensors import read_tensors, write_tensors
from veilray.models.weights import save_weights

CANARY = "CANARY-7d2f"
SMALL = ModelConfig(width=4, depth=2)


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    """A trained and evaluated run with something to leak in every corner."""
    facts = {"n_train_patients": 500, "n_validation_patients": 60, "n_test_patients": 41, "device_name": CANARY}
    where = {"cohort": f"/data/{CANARY}", "cohort_digest": CANARY, "git_commit": CANARY}
    written = {"cohort": CANARY, "notes": [CANARY]}
    paths = {"launch": {"perceptual_backbone": f"/data/{CANARY}"}, "train": {"epochs": 7, "start": f"/runs/{CANARY}"}}
    run = make_run("run", model=SMALL, summary=written, environment=facts | where, **paths)
    torch.manual_seed(3)
    save_weights(run / "checkpoints/best.safetensors", build_model(SMALL))
    header, tensors = read_tensors(run / "checkpoints/best.safetensors", format="veilray-weights", schema_version="1")
    write_tensors(run / "checkpoints/best.safetensors", tensors, header | {"comment": CANARY})
    for name in ("report.html", "notes.txt", "checkpoints/state-000000001.safetensors", f"{CANARY}.png"):
        (run / name).write_text(CANARY)
    with (run / "evaluation/per_image.csv").open("a") as stream:
        stream.write(f"{CANARY},{CANARY},model,1,1,1,1,1\n")
    return run


def found(source: Path, near: Path) -> tuple[Kind, dict[str, bytes]]:
    """The kind of a folder and the files that would leave."""
    with sealable(source, near=near) as it:
        return it.kind, {name: (it.folder / name).read_bytes() for name in it.names}


def test_of_a_run_only_the_model_leaves(run: Path, tmp_path: Path) -> None:
    kind, files = found(run, tmp_path / "near")
    assert kind == "model"
    assert set(files) == {"model.json", "MODEL_CARD.md", "weights.safetensors"}
    for name, content in files.items():
        assert CANARY.encode() not in content, name
        for text in (b"00000000_000", b"c0ffee", b"data/cohort"):  # image ids, cohort digest and path of the fixture
            assert text not in content, name
    assert b"seed" not in files["model.json"]
    assert not list((tmp_path / "near").iterdir())


def test_an_exported_model_denoises_as_its_run_does(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    record = export_model(run, out)
    assert ModelRecord.model_validate(json.loads((out / "model.json").read_text())) == record
    assert record.weights_sha256 == sha256_file(out / "weights.safetensors")
    assert {file.name for file in out.iterdir()} == set(MODEL_FILES)
    assert (record.release, record.config and record.config["train"]["epochs"]) == (None, 7)
    noisy = np.random.default_rng(1).random((24, 20), dtype=np.float32)
    exported = Denoiser.load(out, device="cpu", precision="fp32")
    original = Denoiser.load(run, device="cpu", precision="fp32")
    np.testing.assert_array_equal(exported(noisy, warn=False), original(noisy, warn=False))
    assert exported.noise == original.noise
    with safe_open(out / "weights.safetensors", framework="pt") as file:
        assert set(file.metadata()) == {"format", "schema_version", "model", "noise"}


def test_the_card_says_what_matters(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    record = export_model(run, out)
    card = (out / "MODEL_CARD.md").read_text()
    for text in ("Not a medical device", "691 images of 500 patients", "86 images of 60 patients", "unet of width 4"):
        assert text in card
    assert record.score is not None
    assert f"{record.score.psnr['model'].mean:.2f}" in card
    shutil.rmtree(run / "evaluation")
    assert "Not measured." in _card_of(run, tmp_path / "other")


def test_a_model_that_leaves_site_one_is_in_its_ledger(run: Path, tmp_path: Path) -> None:
    sites, sealed = make_sites(tmp_path / "keys"), tmp_path / "a.veil"
    bundle = seal(run, sealed, keys=sites.one, receivers=[sites.two.card, sites.stranger.card]).manifest
    weights = next(part.sha256 for part in bundle.parts if part.name == "weights.safetensors")
    with sites.one.ledger() as ledger:
        line, *others = ledger.releases()
        tag = ledger.data_tag(CANARY)
    assert others == []
    assert (line.release.release_id, line.release.mode, line.status) == (bundle.bundle_id, "model-only", "committed")
    assert line.release.receivers == bundle.receivers
    assert line.model is not None
    assert (line.model.weights_sha256, line.model.trained_on) == (weights, tag)
    assert (line.images, line.model.patients) == (691 + 86, 500 + 60)
    said = done("ledger", "list", sites.one.path).out
    assert f"{bundle.bundle_id} committed: model-only, weights {weights}, trained on 777 acquisitions" in said
    assert f", two, {sites.stranger.card.fingerprint[:16]}..." in said  # whom nobody has pinned
    assert CANARY not in said
    seal(run, tmp_path / "b.veil", keys=sites.two, receivers=[sites.one.card])  # no ledger there, and none is needed


def test_a_model_whose_sealing_fails_did_not_leave(run: Path, tmp_path: Path) -> None:
    sites = make_sites(tmp_path / "keys")

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seal(run, tmp_path / "a.veil", keys=sites.one, receivers=[sites.two.card], advance=stop)
    with sites.one.ledger() as ledger:
        assert [line.status for line in ledger.releases()] == ["abandoned"]
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"cohort_digest": None}))
    with pytest.raises(RunError, match="on which data"):
        seal(run, tmp_path / "a.veil", keys=sites.one, receivers=[sites.two.card])
    (sites.one.path / "ledger.db").unlink()
    (run / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(DataError, match="restore its backup"):
        seal(run, tmp_path / "a.veil", keys=sites.one, receivers=[sites.two.card])
    assert not (tmp_path / "a.veil").exists()


def _card_of(run: Path, out: Path) -> str:
    out.mkdir()
    export_model(run, out)
    return (out / "MODEL_CARD.md").read_text()


def test_a_run_that_says_nothing_of_its_data_or_has_no_weights_is_an_error(run: Path, tmp_path: Path) -> None:
    (run / "environment.json").write_text(json.dumps({"n_train": f"many, {CANARY}"}))
    with pytest.raises(RunError, match="how much data"):
        found(run, tmp_path)
    (run / "checkpoints/best.safetensors").unlink()
    with pytest.raises(RunError, match="lost its checkpoints"):
        found(run, tmp_path)


def test_denoised_images_leave_with_their_record(tmp_path: Path) -> None:
    source = denoised_folder(tmp_path / "source")
    kind, files = found(source, tmp_path)
    assert kind == "denoised"
    assert next(iter(files)) == "denoised.json"
    assert files == {file.name: file.read_bytes() for file in source.iterdir()}


def _rename(folder: Path) -> None:
    record = folder / "denoised.json"
    name = next(folder.glob("*.png")).name
    (folder / name).rename(folder / "00000001_000.png")
    record.write_text(record.read_text().replace(name, "00000001_000.png"))


def _add_text(folder: Path) -> None:
    path = next(folder.glob("*.png"))
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", CANARY)
    Image.open(path).save(path, pnginfo=text)


def _append(folder: Path) -> None:
    path = next(folder.glob("*.png"))
    path.write_bytes(path.read_bytes() + CANARY.encode())


def _link(folder: Path) -> None:
    path = next(folder.glob("*.png"))
    path.rename(folder.parent / "aside.png")
    path.symlink_to(folder.parent / "aside.png")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_rename, RefusedError, "no pseudonyms"),
        (_add_text, RefusedError, "more than pixels"),
        (_append, DataError, "damaged"),
        (_link, DataError, "cannot be sealed"),
        (lambda folder: (folder / "notes.txt").write_text(CANARY), DataError, "does not belong"),
        (lambda folder: next(folder.glob("*.png")).unlink(), DataError, "is missing"),
        (lambda folder: (folder / "denoised.json").write_text("{}"), DataError, "schema"),
        (lambda folder: next(folder.glob("*.png")).write_bytes(b"x" * 99), DataError, "not a PNG"),
    ],
)
def test_denoised_images_that_hold_more_stay(
    tmp_path: Path, change: Callable[[Path], object], error: type[VeilrayError], message: str
) -> None:
    source = denoised_folder(tmp_path / "source")
    change(source)
    with pytest.raises(error, match=message):
        found(source, tmp_path)


def test_images_of_no_release_stay(tmp_path: Path) -> None:
    """Names alone make no pseudonyms: any picture can be named by 32 hexadecimal digits."""
    keys = make_sites(tmp_path / "keys")
    source = denoised_folder(tmp_path / "source", release=None)
    for site, other in ((keys.one, keys.two), (keys.two, keys.one)):
        with pytest.raises(RefusedError, match="not denoised from a release") as caught:
            seal(source, tmp_path / "a.veil", keys=site, receivers=[other.card])
        assert caught.value.exit_status == 4
    denoised_folder(source, seed=2)  # nor do they leave among others
    with pytest.raises(RefusedError, match="not denoised from a release"):
        found(source, tmp_path)


def test_the_ledger_is_asked_about_the_release_of_denoised_images(tmp_path: Path) -> None:
    keys = make_sites(tmp_path / "keys")
    source, out = denoised_folder(tmp_path / "source"), tmp_path / "a.veil"
    with pytest.raises(RefusedError, match="does not know it"):
        seal(source, out, keys=keys.one, receivers=[keys.two.card])
    assert not out.exists()
    made = Release(
        release_id=RELEASE.release_id, receivers=(keys.two.card.fingerprint,), mode="noisy", source="entropy", mean=0.1
    )
    images = [
        LedgerImage(sop_uid=f"1.{n}", digest=each, likeness=each, geometry="native", std=0.2)
        for n, each in enumerate(hashlib.sha256(bytes([n])).digest() for n in range(3))
    ]
    with keys.one.ledger() as ledger:
        ledger.reserve(made, images)
        ledger.commit(made.release_id, digest=RELEASE.digest or "")
    altered = RELEASE.model_copy(update={"digest": None})
    with pytest.raises(RefusedError, match="altered since"):
        seal(denoised_folder(tmp_path / "b", release=altered), out, keys=keys.one, receivers=[keys.two.card])
    keys.one.pin(keys.stranger.card)
    with pytest.raises(RefusedError, match="not made for stranger"):
        seal(source, out, keys=keys.one, receivers=[keys.stranger.card])
    assert seal(source, out, keys=keys.one, receivers=[keys.two.card]).notes == ()
    who = Override(name="Dr Who", reason="agreed")
    noted = seal(source, tmp_path / "c.veil", keys=keys.one, receivers=[keys.stranger.card], override=who).notes
    assert "not made for stranger" in noted[0]
    with keys.one.ledger() as ledger:
        events = [event.what for event in ledger.events()]
    assert events[2:] == [
        "denoised images sealed: 3 images, for two",
        "sealing overridden",
        "denoised images sealed: 3 images, for stranger",
    ]


def test_a_cohort_and_any_other_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RefusedError, match="neither a release nor a run"):
        found(tmp_path / "empty", tmp_path)
    cohort = denoised_folder(tmp_path / "cohort")
    (cohort / "cohort.json").write_text("{}")  # whatever else lies beside it
    with pytest.raises(RefusedError, match="clean images") as caught:
        found(cohort, tmp_path)
    assert caught.value.exit_status == 4
    with pytest.raises(DataError, match="not a folder"):
        found(tmp_path / "none", tmp_path)
