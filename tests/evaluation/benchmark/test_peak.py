"""The peak against made-up clocks."""

from __future__ import annotations

import pytest
import torch

from veilray.evaluation.benchmark import peak
from veilray.training.config import RunConfig


def test_the_peak_is_the_fastest_product_that_takes_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []

    def clock(a: torch.Tensor, b: torch.Tensor) -> float:
        sides.append(len(a))
        return 0.2 + 0.01 * (sides.count(512) % 3) if len(a) == 512 else 0.001

    monkeypatch.setattr(peak, "_timed", clock)
    before = torch.backends.cuda.matmul.allow_tf32
    config = RunConfig.model_validate({"launch": {"precision": "bf16"}})
    assert peak.measured_peak(torch.device("cpu"), config) == pytest.approx(2 * 512**3 / 0.2)
    assert set(sides) == {256, 512}
    assert torch.backends.cuda.matmul.allow_tf32 == before
