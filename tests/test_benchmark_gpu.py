"""The GPU record's script on the CPU: every section that needs no CUDA, and what it says of those that do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SECTIONS = {"throughput", "paper_epoch", "two_ranks", "training"}


def _run(out: Path, *options: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "gpu-quick.json").read_text()), done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_section_that_needs_no_cuda_measures_and_the_others_say_why_not(tmp_path: Path) -> None:
    record, said = _run(tmp_path, "--device", "cpu", "--quick", "--minutes", "30")
    assert {name: one["status"] for name, one in record["sections"].items()} == dict.fromkeys(SECTIONS, "done")
    for ways in record["throughput"].values():
        for name, found in ways.items():
            if "graphed" in name or "compiled" in name:
                assert found.keys() == {"status", "reason"}
            else:
                assert found["status"] == "measured", found
                assert found["images_per_s"] == pytest.approx(1000 * found["batch"] / found["ms_per_step"])
                assert found["peak_memory_bytes"] is None
    for found in record["paper_epoch"].values():
        assert found["images"] == {"train": 12, "validation": 7}  # 50 and 33 % of 24 images
        assert found["projected_50_epochs_s"] == pytest.approx(50 * found["epoch_s"])
        assert 0 < found["metrics_share"] < 1
    exact = record["two_ranks"]["gradients"]
    assert exact["float64"]["largest_relative_l2_of_a_tensor"] < 1e-10
    assert exact["float32"]["relative_l2"] < 1e-5
    assert 2 <= record["training"]["run"]["epochs"] <= 3
    assert record["training"]["test"]["n_images"] > 0
    assert record["nccl_over_several_gpus"].startswith("untested")
    assert "no figure of it says anything" in said


@pytest.mark.slow
def test_what_ends_early_leaves_a_whole_record_and_no_invented_figure(tmp_path: Path) -> None:
    record, said = _run(tmp_path, "--device", "cpu", "--quick", "--minutes", "0.02")
    assert {one["status"] for one in record["sections"].values()} <= {"cut off", "left out"}
    assert "throughput" not in record
    assert "images/s" not in said


@pytest.mark.slow
def test_without_cuda_it_says_so(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("gpu: torch finds no CUDA device")
    assert not list(tmp_path.iterdir())
