"""A second release under another noise key: the ledger asks for an answer, and noise2noise trains on the pair."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.command_line import SMALL, done, split_file, veilray
from tests.exchange.sites import make_sites
from tests.training.small import write_images

OVERRIDE = ["--override-name", "A. Officer", "--override-reason", "noise2noise"]


@pytest.mark.slow
@pytest.mark.parametrize("clamp", ["--clip", "--no-clip"])
def test_noise2noise_trains_on_two_releases_of_two_noise_keys_that_may_leave(tmp_path: Path, clamp: str) -> None:
    make_sites(tmp_path / "keys")
    keys = tmp_path / "keys/one"
    write_images(tmp_path / "png", patients=20)
    sets = split_file(tmp_path / "sets.csv", tmp_path / "png", ["train", "train", "validation", "test"])
    options = ["--size", 32, "--split", sets, "--workers", 1]
    done("import", tmp_path / "png", "--out", tmp_path / "cohort", *options)

    def release(name: str, *more: str) -> list[object]:
        words = ["--keys", keys, "--receiver", "two", "--std", "0.2", clamp, *more]
        return ["obfuscate", tmp_path / "cohort", "--out", tmp_path / name, *words]

    def trained(second: str) -> list[object]:
        words = ["--second", tmp_path / second, "--set", "train.objective=noise2noise", *SMALL]
        return ["train", "default", "--data", tmp_path / "first", "--out", tmp_path / "run", *words]

    done(*release("first"))
    done(*release("again"))
    assert "same release" in veilray(*trained("again")).err
    done("keys", "rotate", keys, "noise", "--yes")
    refused = veilray(*release("second"))
    assert (refused.status, "from std 0.2 to 0.141" in refused.err) == (4, True)
    done(*release("second", *OVERRIDE))
    for name in ("first", "second"):
        done("seal", tmp_path / name, "--out", tmp_path / f"{name}.veil", "--keys", keys, "--to", "two")
    assert "noise2noise" in done(*trained("second")).out
