"""Devices: the one that is asked for, or a clear no."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from veilray.errors import UsageError
from veilray.parallel.devices import (
    describe_device,
    is_out_of_memory,
    multiplies_bf16,
    pick_device,
    use_huge_pages,
)


def _have(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_fastest(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str) -> None:
    _have(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device("auto") == torch.device(chosen)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _have(monkeypatch, cuda=False, mps=False)
    with pytest.raises(UsageError, match=f"no {name} device"):
        pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "CUDA", "", "cuda:0"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="choose auto, cpu, cuda or mps"):
        pick_device(name)


def test_the_description_names_processor_and_threads() -> None:
    name, _, threads = describe_device(torch.device("cpu")).rpartition(", ")
    assert name.strip()
    assert threads.split() == [str(torch.get_num_threads()), "thread" if torch.get_num_threads() == 1 else "threads"]


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", None])
def test_bf16_counts_only_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch, flag: str | None) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, **({flag: True} if flag else {})})
    assert multiplies_bf16(torch.device("cpu")) == (flag is not None)
    assert not multiplies_bf16(torch.device("mps"))


def test_memory_that_cannot_be_had_is_known_as_such() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_huge_pages_are_asked_for_before_torch_and_a_user_s_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    code = (
        "import os, sys; from veilray.cli import main\n"
        "asked = ('THP_MEM_ALLOC_ENABLE', 'OPENBLAS_NUM_THREADS')\n"
        "main.app = lambda **options: print(*map(os.environ.get, asked), {'torch', 'numpy'} & set(sys.modules))\n"
        "main._status([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["1", "1", "set()"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept() -> None:
    code = (
        "import resource\n"
        "from veilray.parallel.devices import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(8): b'x' * (40 << 20)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "usual = faults(); keep_freed_memory(); faults(); print(usual, faults())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    usual, kept = map(int, done.stdout.split())
    assert usual > 100  # 40 MiB are 20 huge pages
    assert kept < usual / 10
