# SPDX-License-Identifier: Apache-2.0
"""Under SGX the host reads and writes every TCP byte. What would let it is refused, under a fake SGX environment (a
directory in place of /dev/attestation): each time with the reason."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from enclave_proxy.config import WorkerConfig
from enclave_proxy.errors import RoutesError
from enclave_proxy.route_parts import Local, parse_cluster, parse_listener
from enclave_proxy.surroundings import look_around
from manifests.address import TcpAddress
from manifests.errors import ManifestError
from manifests.parse import parse
from sds.attestation.simulated import SimulatedEnclave
from tests.kit.coordinator import manifest
from tests.kit.mesh import package
from tests.kit.pki import now
from xds_server.snapshot_routes import app_cluster, incoming_of, outbound_listener, outgoing_of

ENV = {"PATH": os.defpath}
READS = "under SGX the host reads loopback"


@pytest.fixture
def sgx(tmp_path: Path) -> Local:
    """How a worker that has found Gramine's device judges what is pushed."""
    given = {"marble-type": "web", "platform": f"gramine:{tmp_path}"}
    config = WorkerConfig.load({}, given, (), cwd=tmp_path, runtime_dir=tmp_path)
    return Local(config.run_dir, look_around(config, {}, now).loopback_is_public)


def tls(**entries: object) -> bytes:
    return manifest(
        Packages={"web": package(SimulatedEnclave.default("web"))},
        Marbles={"web": {"Package": "web", "TLS": ["t"]}},
        TLS={"t": entries},
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_tcp_upstream_is_refused_by_the_coordinator_and_by_the_worker_too(sgx: Local, host: str) -> None:
    written = f"tcp:[{host}]:80" if ":" in host else f"tcp:{host}:80"
    with pytest.raises(ManifestError, match=re.escape(f"Upstream {written} is refused for Marble web: its")):
        parse(tls(Incoming=[{"Port": "8080", "Upstream": written}]))
    allowed = incoming_of(parse(tls(Incoming=[{"Port": "8080"}])), "web")[0]
    pushed = app_cluster(replace(allowed, upstream=TcpAddress(host, 80)))
    with pytest.raises(RoutesError, match=READS):
        parse_cluster("app|8080", pushed.SerializeToString(), sgx)


def test_a_tcp_listen_is_refused_by_the_coordinator_and_by_the_worker_too(sgx: Local) -> None:
    with pytest.raises(ManifestError, match=r"Listen tcp:127\.0\.0\.1:8000 is refused for Marble web: its"):
        parse(tls(Outgoing=[{"Addr": "web", "Port": "80", "Listen": "tcp:127.0.0.1:8000"}]))
    allowed = outgoing_of(parse(tls(Outgoing=[{"Addr": "web", "Port": "80"}])), "web")[0]
    pushed = outbound_listener(replace(allowed, listen=TcpAddress("127.0.0.1", 8000)))
    with pytest.raises(RoutesError, match=READS):
        parse_listener("outbound|web|80", pushed.SerializeToString(), sgx)


def test_unix_sockets_are_not(sgx: Local) -> None:
    parsed = parse(tls(Incoming=[{"Port": "8080"}], Outgoing=[{"Addr": "web", "Port": "80"}]))
    parse_cluster("app|8080", app_cluster(incoming_of(parsed, "web")[0]).SerializeToString(), sgx)
    parse_listener("outbound|web|80", outbound_listener(outgoing_of(parsed, "web")[0]).SerializeToString(), sgx)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--concurrency", "2"), "EDG_MARBLE_CONCURRENCY (--concurrency): 2 processes under SGX"),
        (
            ("--capture", "nft", "--app-user", "1000"),
            "(--capture): under SGX the network is the host's, so that its",
        ),
        (
            ("--capture", "auto", "--app-user", "1000"),
            "rules prove nothing and it reads what they redirect",
        ),
    ],
)
def test_several_processes_and_capture_are_refused_at_the_start(
    tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    places = ("--platform", f"gramine:{tmp_path}", "--run-dir", str(tmp_path / "r"), "--admin-addr", "off")
    command = (sys.executable, "-m", "enclave_proxy", "run", "--marble-type", "web", *flags, *places, "--", "true")
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**ENV, "PYTHONPATH": str(root)})
    assert done.returncode == 2
    assert says in done.stderr
