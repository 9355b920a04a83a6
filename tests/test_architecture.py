"""The bones: imports go one way, and what is not needed is not imported."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import veilray
from veilray.privacy.audit import APART

SOURCE = Path(veilray.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

# A folder imports only from folders above it; errors.py and files.py lie at the bottom.
ORDER = (
    *("errors", "files", "parallel", "images", "obfuscation", "metrics", "cohort", "models"),
    *("training", "inference", "evaluation", "privacy", "exchange", "clinic", "report", "cli"),
)

DICOM = {"pydicom", "pynetdicom", "gdcm", "openjpeg", "pylibjpeg", "rle", "jpeg_ls", "pyjpegls"}
WEB = {"fastapi", "uvicorn", "httpx", "requests", "aiohttp", "flask", "starlette"}
HEAVY = {"torch", "matplotlib", "scipy", "tensorboard", "torchmetrics", "jinja2", *DICOM, *WEB}


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, at its top or inside a function, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            assert node.module is not None
            yield node.module, node.lineno
            if node.module.partition(".")[0] == "veilray":  # what is taken from a package may be a module
                for alias in node.names:
                    yield f"{node.module}.{alias.name}", node.lineno


def _part(module: str) -> str | None:
    """The folder, or file at the top, of a module of Veilray's own; None for the package itself and for others."""
    parts = module.split(".")
    return parts[1] if parts[0] == "veilray" and len(parts) > 1 and parts[1] in ORDER else None


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_folder_imports_only_from_those_above(path: Path) -> None:
    relative = path.relative_to(SOURCE)
    if relative == Path("__init__.py"):
        return  # gathers the public names from everywhere, on demand
    own = "cli" if relative == Path("__main__.py") else relative.parts[0].removesuffix(".py")
    assert own in ORDER, f"{relative}: a folder that the order does not know"
    for module, line in _imports(path):
        part = _part(module)
        assert part is None or ORDER.index(part) <= ORDER.index(own), f"{relative}:{line} imports {module}"


def test_the_order_covers_every_folder() -> None:
    there = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__", "__main__"}
    assert there == set(ORDER)


@pytest.mark.slow
def test_modules_do_not_import_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    names = {".".join(["veilray", *path.relative_to(SOURCE).with_suffix("").parts]): path for path in MODULES}
    for name, path in names.items():
        graph[name] = {module for module, _ in _imports(path) if module in names and module != name}
    graph["veilray.__init__"] = set()
    graph["veilray.cli.demo"].discard("veilray.cli.main")  # the demo runs the other commands as a user would
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' > '.join([*trail[trail.index(name) :], name])}"
        if name not in done:
            for module in graph[name]:
                visit(module, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_attack_depends_on_what_results_of_an_audit_outlive() -> None:
    names = {".".join(["veilray", *path.relative_to(SOURCE).with_suffix("").parts]): path for path in MODULES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    waiting, reached = [name for name in names if _part(name) == "privacy"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in names and name not in reached and name != "veilray":  # which gathers names from everywhere
            reached.add(name)
            for module, line in _imports(names[name]):
                public = module.startswith("veilray.") and module.count(".") == 1 and module not in names
                assert not public, f"{names[name]}:{line} imports {module} by way of the package itself"
                waiting.append(module)
    assert {"privacy", "training", "cohort", "inference"} <= {_part(name) for name in reached}
    parts = {path.relative_to(SOURCE).parts[0] for path in MODULES}
    assert parts >= APART
    assert not {name.split(".")[1] for name in reached} & {part.removesuffix(".py") for part in APART}


def test_metrics_and_noise_touch_no_files() -> None:
    for path in [*(SOURCE / "obfuscation").glob("*.py"), *(SOURCE / "metrics").glob("*.py")]:
        if path.name != "lpips.py":  # whose weights are a file
            files = {module for module, _ in _imports(path)} & {"pathlib", "tempfile", "shutil", "io", "veilray.files"}
            assert not files, path


def _loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=240)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_the_package_and_its_help_import_nothing_heavy() -> None:
    assert not _loaded_after("import veilray; dir(veilray)") & (HEAVY | {"numpy", "typer"})
    helping = "from veilray.cli.main import _status\ntry:\n    _status(['--help'])\nexcept SystemExit:\n    pass"
    assert not _loaded_after(helping) & HEAVY


@pytest.mark.slow
def test_reading_a_png_needs_neither_torch_nor_dicom() -> None:
    assert not _loaded_after("import veilray; veilray.read_radiograph") & ({"torch", "matplotlib"} | DICOM)


@pytest.mark.slow
def test_training_needs_no_dicom_and_no_web() -> None:
    modules = "import veilray.training.loop, veilray.training.run, veilray.cli.training"
    loaded = _loaded_after(modules)
    assert "torch" in loaded
    assert not loaded & (DICOM | WEB - {"requests"})
    # What scores and draws would keep every rank waiting before its first step.
    assert not loaded & {"scipy", "matplotlib", "tensorboard", "skimage"}
    for path in (SOURCE / "training").glob("*.py"):
        assert not {module.partition(".")[0] for module, _ in _imports(path)} & (DICOM | WEB), path


def test_every_file_has_one_subject_and_fits() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {str(path): length for path, length in lengths.items() if length > 350} == {}
