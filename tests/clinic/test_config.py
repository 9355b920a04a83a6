"""A node's configuration: what is refused, and where its paths lie."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from tests.clinic.nodes import write_config
from tests.command_line import veilray

from veilray.clinic.config import DicomDestination, load_serve_config
from veilray.errors import UsageError


def test_paths_count_from_the_file_s_folder_and_loopback_is_the_default(tmp_path: Path) -> None:
    config = load_serve_config(write_config(tmp_path, port=11113))
    assert config.node.state == tmp_path.resolve() / "state"
    assert config.model.path == tmp_path.resolve() / "model.safetensors"
    assert (config.node.host, config.http.host) == ("127.0.0.1", "127.0.0.1")
    (destination,) = config.destinations
    assert isinstance(destination, DicomDestination)
    assert destination.port == 11113


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ('ae_title = "VEILRAY"', 'ae_title = "TOO LONG A TITLE X"', "ae_title"),
        ('calling = ["MODALITY", "STORESCU"]', "calling = []", "calling"),
        ('calling = ["MODALITY", "STORESCU"]', "", "calling"),
        ('name = "archive"', 'name = "Archive 1"', "name"),
        ('kind = "dicom"', 'kind = "ftp"', "kind"),
        ("[retry]", "[retries]", "retries"),
        ("first_seconds", "first_second", "first_second"),
        ("tries = 3", "tries = 0", "tries"),
        ("[node]", "[node", "TOML"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, old: str, new: str, wanted: str) -> None:
    path = write_config(tmp_path, port=11113)
    path.write_text(path.read_text().replace(old, new, 1))
    result = veilray("serve", path)
    assert (result.status, len(result.lines)) == (2, 1)
    assert wanted in result.err
    assert not (tmp_path / "state").exists()


def test_two_destinations_need_two_names(tmp_path: Path) -> None:
    extra = '[[destinations]]\nkind = "stow"\nname = "archive"\nurl = "https://pacs.example/dicom-web"'
    path = write_config(tmp_path, port=11113, extra=extra)
    with pytest.raises(UsageError, match="same name"):
        load_serve_config(path)


def test_credentials_in_an_address_and_files_that_others_read_are_refused(tmp_path: Path) -> None:
    destination = '[[destinations]]\nkind = "stow"\nname = "web"\n'
    with pytest.raises(UsageError, match="url"):
        load_serve_config(write_config(tmp_path, port=1, extra=f'{destination}url = "https://me:secret@pacs.example"'))
    (tmp_path / "token").write_text("Bearer secret")
    (tmp_path / "token").chmod(0o644)
    extra = f'{destination}url = "https://pacs.example"\nauthorization_file = "token"'
    result = veilray("serve", write_config(tmp_path, port=1, extra=extra))
    assert (result.status, "chmod go-rwx" in result.err, "secret" in result.err) == (4, True, False)


def test_status_of_a_node_that_never_ran(tmp_path: Path) -> None:
    result = veilray("serve", write_config(tmp_path, port=1), "--status")
    assert (result.status, "no queue" in result.err) == (2, True)
    assert veilray("serve", tmp_path / "none.toml").status == 2


@pytest.mark.parametrize("section", ["node", "http"])
def test_a_port_that_is_taken_is_named_before_the_model_is_loaded(tmp_path: Path, section: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = write_config(tmp_path, port=1)
        text = config.read_text()
        head, found, rest = text.partition(f"[{section}]")
        config.write_text(head + found + rest.replace("port = 0", f"port = {port}", 1))
        result = veilray("serve", config)  # there is no model, but nothing gets that far
    assert (result.status, len(result.lines)) == (2, 1)
    assert f"cannot listen on 127.0.0.1, port {port}: address already in use" in result.err


def test_the_operator_s_commands_want_a_queue_and_fit_together(tmp_path: Path) -> None:
    config = write_config(tmp_path, port=1)
    for words in (
        ["--retry-kept"],
        ["--forget", "all"],
        ["--discard", "kept"],
        ["--discard", "dead", "--destination", "archive"],
    ):
        result = veilray("serve", config, *words)
        assert (result.status, len(result.lines)) == (2, 1)
        assert "no queue" in result.err
    assert "--forget takes" in veilray("serve", config, "--forget", "%").err
    assert "--discard dead" in veilray("serve", config, "--discard", "kept", "--destination", "archive").err


def test_a_model_is_a_path_or_the_name_of_one_that_ships(tmp_path: Path) -> None:
    path = write_config(tmp_path, port=1)
    text = path.read_text()

    def model(value: str) -> Path | str:
        path.write_text(text.replace('path = "model.safetensors"', f'path = "{value}"'))
        return load_serve_config(path).model.path

    assert model("runs/mine") == tmp_path.resolve() / "runs" / "mine"
    assert model("default") == model("shipped:default") == "shipped:default"
    assert model("./default") == tmp_path.resolve() / "default"
    (tmp_path / "default").mkdir()
    with pytest.raises(UsageError, match="ships and a path here"):
        model("default")
    assert model("shipped:default") == "shipped:default"


EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_the_example_of_the_documentation_is_a_configuration() -> None:
    config = load_serve_config(EXAMPLES / "node.toml")
    assert config.node.host == "127.0.0.1"
    assert config.model.path == "shipped:default"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize(
    ("name", "words"),
    [("veilray", "serve /etc/veilray/node.toml"), ("veilray-receive", "receive /etc/veilray-receive/receive.toml")],
)
def test_systemd_understands_the_units_and_finds_them_well_confined(tmp_path: Path, name: str, words: str) -> None:
    text = (EXAMPLES / f"{name}.service").read_text()
    assert f"ExecStart=/opt/veilray/bin/veilray {words}" in text
    unit = tmp_path / f"{name}.service"  # the program need not be there to see whether the rest holds
    unit.write_text(re.sub(r"(?m)^ExecStart=.*$", "ExecStart=/bin/true", text))
    checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    rated = subprocess.run(["systemd-analyze", "security", "--offline=true", unit], capture_output=True, text=True)
    level = re.search(rf"exposure level for {name}.service: ([\d.]+)", rated.stdout)
    assert level is not None
    assert float(level[1]) < 3  # of 10
