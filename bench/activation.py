# SPDX-License-Identifier: Apache-2.0
"""Activations per second and the Coordinator's CPU time in each: by stage, one after the other and 64 at once.

Real Coordinator process, real TLS, quotes of the simulated platform, a manifest with secrets and templates; once for a
Marble type without and once for one with MaxActivations, which costs a committed state each. There is no peer to run
beside it: MarbleRun publishes no figures. What may be compared is the share of cryptography in the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from bench.measure import cpu_seconds, write_result
from bench.relay_peers import free_port
from enclave_proxy.activation_client import ActivationClient
from enclave_proxy.config import HostPort
from enclave_proxy.own_certificate import OwnCertificate
from sds.attestation.report_data import marble_report_data
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform

CREDENTIALS = 64  # made beforehand: what is measured is the Coordinator
STAGES = ("tls", "quote_verification", "key_and_certificate", "secrets", "templates", "state", "mesh")
CRYPTOGRAPHY = ("tls", "quote_verification", "key_and_certificate", "secrets")


@dataclass(frozen=True, slots=True)
class Credential:
    own: OwnCertificate
    quote: bytes


class Server:
    """One Coordinator process in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.platform = folder / "platform"
        self.stages = folder / "stages.json"
        self.client, self.mesh = free_port(), free_port()
        command = [sys.executable, "-m", "bench.activation_server", str(self.stages)]
        flags = {
            "--client-addr": f"127.0.0.1:{self.client}",
            "--mesh-addr": f"127.0.0.1:{self.mesh}",
            "--xds-addr": f"127.0.0.1:{free_port()}",
            "--simulated-platform": str(self.platform),
            "--seal-dir": str(folder / "state"),
        }
        self.log = folder / "coordinator.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--simulation", *(part for flag in flags.items() for part in flag)], stdout=log, stderr=log
            )

    def read_stages(self) -> dict[str, dict[str, float]]:
        """The stop-watch now."""
        self.stages.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not self.stages.exists():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"the Coordinator tells no times:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.01)
        return dict(json.loads(self.stages.read_text()))

    def set_manifest(self, manifest: dict[str, object]) -> None:
        body = json.dumps({"manifest": base64.b64encode(json.dumps(manifest).encode()).decode()}).encode()
        # The Coordinator is this program's own child on loopback; there is nothing to attest here.
        trust = ssl._create_unverified_context()
        url = f"https://127.0.0.1:{self.client}/api/v2/manifest"
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(url, body), context=trust, timeout=20).read()
            except OSError:  # not listening yet; URLError is one
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError(f"the Coordinator does not start:\n{self.log.read_text()[-2000:]}") from None
                time.sleep(0.1)
            else:
                return


def manifest(enclave: SimulatedEnclave) -> dict[str, object]:
    """Two types that differ in MaxActivations alone; each with a shared and an own key, in a file and a variable."""
    parameters = {
        "Files": {"/run/key": "{{ hex .Secrets.own }}", "/run/ca.pem": "{{ pem .MarbleRun.RootCA.Cert }}"},
        "Env": {"SHARED": "{{ base64 .Secrets.shared }}", "MODE": "production"},
    }
    marble = {"Package": "p", "Parameters": parameters}
    return {
        "Packages": {"p": {"UniqueID": enclave.unique_id.hex()}},
        "Marbles": {"free": marble, "limited": {**marble, "MaxActivations": 1_000_000}},
        "Secrets": {
            "own": {"Type": "symmetric-key", "Size": 256},
            "shared": {"Type": "symmetric-key", "Size": 256, "Shared": True},
        },
    }


async def activate(server: Server, credentials: list[Credential], marble_type: str, count: int, at_once: int) -> None:
    address = HostPort("127.0.0.1", server.mesh)
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            credential = credentials[number % len(credentials)]
            await ActivationClient(address, credential.own).activate(credential.quote, marble_type, str(uuid.uuid4()))

    await asyncio.gather(*(some() for _ in range(at_once)))


async def measure(server: Server, credentials: list[Credential], marble_type: str, count: int, at_once: int) -> object:
    await activate(server, credentials, marble_type, 4 * at_once, at_once)  # warm
    before, cpu, start = server.read_stages(), cpu_seconds(server.process.pid), time.monotonic()
    await activate(server, credentials, marble_type, count, at_once)
    seconds, cpu = time.monotonic() - start, cpu_seconds(server.process.pid) - cpu
    after = server.read_stages()
    each = {name: (after["seconds"].get(name, 0.0) - before["seconds"].get(name, 0.0)) / count * 1e6 for name in STAGES}
    total = cpu / count * 1e6
    each["rest"] = total - sum(each.values())
    return {
        "activations": count,
        "activations_per_second": round(count / seconds, 1),
        "cpu_us_per_activation": round(total),
        "stages_us": {name: round(value) for name, value in each.items()},
        "cryptography_share": round(sum(each[name] for name in CRYPTOGRAPHY) / total, 3),
    }


async def run(server: Server, count: int) -> dict[str, object]:
    platform = SimulatedPlatform.open(server.platform, datetime.now(UTC))
    enclave = SimulatedEnclave.default("bench")
    issuer = platform.issuer(enclave)
    await asyncio.to_thread(server.set_manifest, manifest(enclave))
    owns = [OwnCertificate.create(["localhost"], ["127.0.0.1"], datetime.now(UTC)) for _ in range(CREDENTIALS)]
    credentials = [Credential(own, issuer.issue(marble_report_data(own.certificate)).to_wire()) for own in owns]
    result: dict[str, object] = {}
    for marble_type in ("free", "limited"):
        for name, at_once in (("sequential", 1), ("concurrent_64", 64)):
            figures = await measure(server, credentials, marble_type, count, at_once)
            key = f"{name}{'_max_activations' if marble_type == 'limited' else ''}"
            result[key] = figures
            print(f"{key}: {json.dumps(figures)}", flush=True)
    return result


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=activation", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="activations in each of the four runs (default 2000)")
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="mmb") as folder:
        server = Server(Path(folder))
        try:
            os.sched_setaffinity(server.process.pid, {cores[0]})
            if len(cores) > 1:
                os.sched_setaffinity(0, set(cores[1:]))
            result = uvloop.run(run(server, options.count))
        finally:
            server.process.terminate()
            server.process.wait(20)
    headline = result["sequential"]
    assert isinstance(headline, dict)
    figures = {name: headline[name] for name in ("activations_per_second", "cpu_us_per_activation")}
    print(f"written: {os.path.relpath(write_result('activation', {**figures, **result}))}")
    return 0
