"""CPU quotas of control groups: the least of all that hold, in both versions, rounded up."""

from __future__ import annotations

from pathlib import Path

import pytest

from veilray.parallel import workers
from veilray.parallel.quota import quota_cores


def _tree(folder: Path, own: str, files: dict[str, str]) -> dict[str, Path]:
    for name, text in files.items():
        (folder / "control" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "control" / name).write_text(text)
    (folder / "own").write_text(own)
    return {"control": folder / "control", "own": folder / "own"}


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({"job/step/cpu.max": "max 100000\n"}, None),
        ({"job/step/cpu.max": "400000 100000\n"}, 4),
        ({"job/step/cpu.max": "150000 100000\n"}, 2),
        ({"job/step/cpu.max": "20000 100000\n"}, 1),
        ({"job/step/cpu.max": "800000 100000\n", "job/cpu.max": "300000 100000\n"}, 3),
        ({"job/step/cpu.max": "max 100000\n", "cpu.max": "250000 50000\n"}, 5),
        ({"other/cpu.max": "100000 100000\n"}, None),
        ({"job/step/cpu.max": "nonsense\n"}, None),
    ],
)
def test_version_2(tmp_path: Path, limits: dict[str, str], cores: int | None) -> None:
    assert quota_cores(**_tree(tmp_path, "0::/job/step\n", limits)) == cores


@pytest.mark.parametrize("path", ["/", "/docker/of-the-host"])
def test_version_2_inside_a_container(tmp_path: Path, path: str) -> None:
    assert quota_cores(**_tree(tmp_path, f"0::{path}\n", {"cpu.max": "200000 100000\n"})) == 2


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("350000", 4), ("100000", 1)])
def test_version_1(tmp_path: Path, mount: str, quota: str, cores: int | None) -> None:
    own = "12:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/job\n"
    files = {f"{mount}/job/cpu.cfs_quota_us": f"{quota}\n", f"{mount}/job/cpu.cfs_period_us": "100000\n"}
    assert quota_cores(**_tree(tmp_path, own, files)) == cores


def test_without_control_groups_nothing_limits(tmp_path: Path) -> None:
    assert quota_cores(control=tmp_path, own=tmp_path / "none") is None


def test_a_quota_lowers_the_cores_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "quota_cores", lambda: None)
    all_cores = workers.available_cores()
    monkeypatch.setattr(workers, "quota_cores", lambda: 1)
    assert workers.available_cores() == 1
    monkeypatch.setattr(workers, "quota_cores", lambda: all_cores + 5)
    assert workers.available_cores() == all_cores
