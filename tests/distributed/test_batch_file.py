"""The SLURM batch file of the examples, with `srun`, `scontrol` and `torchrun` that only say what they were given."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BATCH_FILE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "train.slurm"
COMMANDS = {
    "scontrol": 'test "$3" = "node[1-2]" && printf "node1\\nnode2\\n"',
    "srun": 'printf "%s\\n" "$@"',
}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="batch files are for bash")


def _given(folder: Path, run: Path, **job: str) -> list[str]:
    """What the batch file gives srun."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name, script in COMMANDS.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    job = {
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "4711",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "32",
        "COHORT": "/data/a cohort",
        "RUN": str(run),
        **job,
    }
    environment = {**os.environ, **job, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(BATCH_FILE)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_each_machine_gets_its_cores_and_starts_torchrun(tmp_path: Path) -> None:
    given = _given(tmp_path, tmp_path / "run")
    launcher = given.index("torchrun")
    assert "--cpus-per-task=32" in given[:launcher]
    options = {"--nnodes=2", "--nproc-per-node=4", "--rdzv-id=4711", "--rdzv-endpoint=node1:24711"}
    assert options <= set(given[launcher:])
    command = given[given.index("-m") + 1 :]
    assert command[:3] == ["veilray", "train", "default"]
    assert command[command.index("--data") + 1] == "/data/a cohort"
    assert "--resume" not in command


def test_jobs_meet_at_ports_of_their_own(tmp_path: Path) -> None:
    ends = [_given(tmp_path, tmp_path / "run", SLURM_JOB_ID=job) for job in ("23999", "24000", "24001")]
    ports = [given.rpartition(":")[2] for end in ends for given in end if given.startswith("--rdzv-endpoint=node1:")]
    assert ports == ["31999", "20000", "20001"]


def test_an_environment_that_is_named_is_activated(tmp_path: Path) -> None:
    activate = tmp_path / "an environment" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("RUN=activated\n")
    given = _given(tmp_path, tmp_path / "run", VENV=str(activate.parents[1]))
    assert given[given.index("--out") + 1] == "activated"


def test_a_run_that_was_begun_goes_on_in_the_next_job(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    run.mkdir()
    (run / "config.toml").touch()
    assert _given(tmp_path, run)[-1] == "--resume"
