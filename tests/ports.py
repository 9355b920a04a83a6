"""TCP ports for servers that a test starts as processes of their own, and which must be told their port beforehand."""

from __future__ import annotations

import os
import random
import socket

# Below the ports that Linux gives to outgoing connections and to servers that ask for any: between the choice of a port
# and the start of its server, which takes seconds on a busy machine, one of those would take it.
_PORTS = range(15_000, 32_000)
# Of which each of the workers that share out the tests has its own.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_OWN = _PORTS[_WORKER :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
_chosen = iter(random.Random(os.getpid()).sample(_OWN, len(_OWN)))


def free_port() -> int:
    """A TCP port of loopback that nobody listens on, another one at each call."""
    for port in _chosen:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no port of loopback is free")
