"""A folder with a model in it, for every test of the node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.clinic.nodes import NodeProcess

pytest.importorskip("pynetdicom")
pytest.importorskip("httpx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `model.safetensors`."""
    from tests.clinic.nodes import write_model

    write_model(tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def start_node() -> Iterator[Callable[[Path], NodeProcess]]:
    """Starts nodes as processes of their own; what a test leaves behind of them is killed."""
    from tests.clinic.nodes import NodeProcess

    started: list[NodeProcess] = []

    def start(config: Path) -> NodeProcess:
        started.append(NodeProcess(config))
        return started[-1]

    yield start
    for node in started:
        node.end()
