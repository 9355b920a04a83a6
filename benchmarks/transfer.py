"""Sending a bundle over loopback, with TLS, both hashes and the disk: speed, and memory that does not grow with it.

    python benchmarks/transfer.py [--sizes 0.25,1] [--rounds 3] [--save]

`veilray receive` and `veilray send` run as processes of their own. The time is the sending process's, from its first
read of the bundle to the server's answer that all of it is safe; the hash that is signed is part of it. Peak memory is
the largest resident set of each process. A copy of the same bytes on the same disk (`cp` and sync) is shown beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peak import peak_bytes
from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.transfer.authority import make_test_authority
from veilray.exchange.transfer.client import ClientTls, send_bundle
from veilray.files import sync

BLOCK = os.urandom(2**20)


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.25,1", help="in 10^9 bytes, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write results/transfer.json")
    parser.add_argument("--send", nargs=2, metavar=("FOLDER", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        print(json.dumps(_send(Path(options.send[0]), options.send[1])))
        return
    from common import save, table

    figures = {}
    for size in (float(text) for text in options.sizes.split(",")):
        rounds = [_measure(int(size * 1e9)) for _ in range(options.rounds)]
        figures[f"{size:g}"] = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    rows = [
        [
            size,
            f"{float(size) * 1000 / found['seconds']:,.0f}",
            f"{float(size) * 1000 / found['copy_seconds']:,.0f}",
            f"{found['send_peak_bytes'] / 1e6:,.0f}",
            f"{found['receive_peak_bytes'] / 1e6:,.0f}",
        ]
        for size, found in figures.items()
    ]
    print(table(["GB", "MB/s", "copy alone, MB/s", "peak memory of send, MB", "of receive, MB"], rows))
    if options.save:
        save("transfer", {"rounds": options.rounds, "by_gigabytes": figures})


def _measure(size: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder, size)
        begun = time.perf_counter()
        subprocess.run(["cp", folder / "a.veil", folder / "copy"], check=True)
        sync(folder / "copy")
        copied = time.perf_counter() - begun
        (folder / "copy").unlink()
        code = "from veilray.cli.main import run; run()"
        server = subprocess.Popen(
            [sys.executable, "-c", code, "receive", str(folder / "receive.toml")], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[2]
            command = [sys.executable, __file__, "--send", str(folder), address]
            sent: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        finally:
            peak = peak_bytes(server.pid)
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
        assert len(list((folder / "spool/two").glob("*.veil"))) == 1
        return {**sent, "copy_seconds": copied, "receive_peak_bytes": peak}


def _prepare(folder: Path, size: int) -> None:
    keys = KeyFolder.create(folder / "two", name="two", role="site-two")
    (folder / "card.json").write_text(keys.card.to_text())
    make_test_authority(folder / "tls")
    (folder / "receive.toml").write_text(
        'spool = "spool"\nport = 0\nauthority = "tls/ca.pem"\ncertificate = "tls/server.pem"\nkey = "tls/server.key"\n'
        'keep_free_gb = 0.0\n[[senders]]\ncard = "card.json"\ncertificates = ["tls/client.pem"]\nlargest_gb = 100.0\n'
        "quota_gb = 100.0\n"
    )
    with (folder / "a.veil").open("wb") as stream:
        stream.write(b"age-encryption.org/v1\n")  # what follows is as random as an encrypted file is
        for _ in range(-(-size // len(BLOCK))):
            stream.write(BLOCK)
    sync(folder / "a.veil")


def _send(folder: Path, url: str) -> dict[str, float]:
    tls = ClientTls(
        authority=folder / "tls/ca.pem", certificate=folder / "tls/client.pem", key=folder / "tls/client.key"
    )
    keys = KeyFolder.open(folder / "two")
    begun = time.perf_counter()
    send_bundle(folder / "a.veil", url, keys=keys, tls=tls)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "send_peak_bytes": peak_bytes()}


if __name__ == "__main__":
    main()
