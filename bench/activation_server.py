# SPDX-License-Identifier: Apache-2.0
"""The real Coordinator, with a stop-watch of CPU time around the stages of an activation.

python -m bench.activation_server STAGES.json [the flags of `marblemesh coordinator`]

A stage's time is its own: what another stage takes inside of it is subtracted. SIGUSR1 writes the times so far.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL import SSL

import xds_server.activator
import xds_server.grpc_unary
from sds.attestation.verify import DcapVerifier
from sds.ca import CertificateAuthority
from xds_server.mesh import Mesh
from xds_server.store import Store

_lock = threading.Lock()
_seconds: Counter[str] = Counter()
_calls: Counter[str] = Counter()
_open = threading.local()


def stage(name: str, owner: Any, *attributes: str) -> None:
    """Count the thread's CPU time inside these functions as `name`."""
    for attribute in attributes:
        setattr(owner, attribute, _timed(name, getattr(owner, attribute)))


def _timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        inner = _open.__dict__.setdefault("stack", [])
        inner.append(0.0)
        start = time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            spent = time.thread_time() - start
            own = spent - inner.pop()
            if inner:
                inner[-1] += spent
            with _lock:
                _seconds[name] += own
                _calls[name] += 1

    return wrapper


def main() -> None:
    path = Path(sys.argv[1])
    stage("tls", SSL.Connection, "do_handshake", "recv", "send", "bio_read", "bio_write")
    stage("quote_verification", DcapVerifier, "verify", "check_chain")
    stage("key_and_certificate", CertificateAuthority, "issue_marble")
    stage("key_and_certificate", xds_server.activator, "parse_csr")
    stage("secrets", xds_server.activator, "for_instance", "for_activation")
    stage("templates", xds_server.activator, "render")
    stage("state", Store, "commit")
    stage("mesh", Mesh, "activated")

    def write(*_: object) -> None:
        with _lock:
            text = json.dumps({"seconds": _seconds, "calls": _calls, "cpu": time.process_time()})
        path.with_suffix(".tmp").write_text(text)
        path.with_suffix(".tmp").replace(path)

    signal.signal(signal.SIGUSR1, write)
    sys.argv = [f"{os.path.basename(sys.argv[0])}", *sys.argv[2:]]  # noqa: PTH119
    from xds_server.__main__ import main as coordinator

    coordinator()


if __name__ == "__main__":
    main()
