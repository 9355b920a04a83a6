"""What all ranks of a training must have in common, and what changes when it goes on with other ranks."""

from __future__ import annotations

import platform
import socket
from collections.abc import Mapping
from typing import Any

from veilray.errors import ToldElsewhere, UsageError, VeilrayError
from veilray.parallel.group import Group
from veilray.training.config import RunConfig
from veilray.training.packages import PACKAGES
from veilray.training.run import RunFolder
from veilray.training.setup import Setup, launch_id

COMPUTING = ("veilray", "torch", "numpy", "scipy")
"""Packages that compute: other versions may round in another way."""
ROUNDING = ("device", "precision", "layout", "compile", "compression")
"""Settings of the launch that change the last bits of a step, or more of them."""


def check_agreement(group: Group, *, config: RunConfig, digest: str) -> None:
    """Compare the versions, configuration and data of all ranks; a UsageError on all where they differ.

    The lead tells it; the other ranks raise ToldElsewhere.
    """
    own = {
        "host": socket.gethostname(),
        "versions": {**PACKAGES, "python": platform.python_version()},
        "config": dict(_flat(config.model_dump(mode="json"))),
        "digest": digest,
    }
    ranks = group.gather(own)
    fault = next(filter(None, (_difference(ranks[0], other, rank) for rank, other in enumerate(ranks))), None)
    if fault is None:
        return
    group.end_for_good(fault.exit_status)
    raise fault if group.is_lead else ToldElsewhere(fault.exit_status)


def restarted(run: RunFolder, group: Group) -> bool:
    """Whether this launch has begun the run itself, and torchrun has started its ranks again since.

    That a process was started again does not say so: a life before may have ended before it came to the folder, which
    then holds another launch's run. Where torchrun's store has not outlived that life, the launch's name tells.
    """
    if group.has_begun():
        return True
    name = launch_id()
    there = (run.path / "environment.json").exists()
    return name is not None and there and run.environment().get("launch_id") == name


def changes(run: RunFolder, config: RunConfig, setup: Setup) -> list[str]:
    """What the user must know where a run goes on in another way than it was trained last."""
    before = run.environment()
    said = []
    was = before.get("setup", "single"), before.get("world_size", 1)
    now = setup.name, setup.group.world_size
    if was != now:
        said.append(
            f"so far {_named(*was)}, going on with {_named(*now)}: the same batches, noise and learning rates, "
            "but gradients are added up in another order: the weights will agree within rounding, not bit for bit"
        )
        if "dp" in (was[0], now[0]) and run.config().model.has_batch_norm:
            said[0] += "; batch normalisation under dp is different training"
    lives = before.get("lives", [])
    launch = lives[-1]["launch"] if lives else run.config().launch.model_dump(mode="json")
    own = config.launch.model_dump(mode="json")
    others = [
        f"launch.{key} was {launch.get(key)!r}, is {own[key]!r}" for key in ROUNDING if launch.get(key) != own[key]
    ]
    others += [
        f"{name} was {before[name]}, is {PACKAGES[name]}"
        for name in COMPUTING
        if before.get(name, PACKAGES[name]) != PACKAGES[name]
    ]
    if others:
        said.append(f"{'; '.join(others)}: from here on numbers are rounded in another way; environment.json says so")
    return said


def _named(setup: str, world_size: int) -> str:
    return f"{setup} on {world_size} rank{'s' if world_size > 1 else ''}"


def _difference(lead: Mapping[str, Any], other: Mapping[str, Any], rank: int) -> VeilrayError | None:
    """What keeps a rank from training with the lead."""
    for package, version in lead["versions"].items():
        if other["versions"][package] != version:
            return UsageError(
                f"rank {rank} on {other['host']} runs {package} {other['versions'][package]}, rank 0 on "
                f"{lead['host']} runs {version}: install the same versions on every machine"
            )
    for key in sorted(lead["config"].keys() | other["config"].keys()):
        here, there = lead["config"].get(key), other["config"].get(key)
        if here != there:
            return UsageError(
                f"rank {rank} on {other['host']} has {key} = {there!r}, rank 0 on {lead['host']} has {here!r}: "
                "give every rank the same configuration"
            )
    if lead["digest"] != other["digest"]:
        return UsageError(
            f"rank {rank} on {other['host']} has data with digest {other['digest'][:12]}, rank 0 on {lead['host']} "
            f"{lead['digest'][:12]}: give every rank the same cohort"
        )
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Keys of nested settings as `section.key`, with their values."""
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return flat
