# SPDX-License-Identifier: Apache-2.0
"""The files that a rendered Gramine manifest trusts are all that the programs need: a mesh runs with nothing else.

Coordinator, fused app and worker each run in a root folder of their own that holds those files only. Attestation is
simulated there, as there is no SGX; under the manifest's own variables they look for Gramine's device and refuse.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sds.attestation.simulated import SimulatedPlatform
from sds.attestation.simulated.enclave import SIMULATED_SIGNER
from tests.kit.enclave_root import EnclaveRoot, chroot_needed, make_runtime
from tests.kit.mesh import free_port
from tests.kit.programs import program

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

APP = """
from http.server import BaseHTTPRequestHandler, HTTPServer

import helper


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(helper.text())


HTTPServer(("0.0.0.0", {port}), Hello).serve_forever()
"""
# Imports inside a function are only found by reading.
HELPER = """
def text():
    import colorsys

    return repr(colorsys.rgb_to_hsv(0, 0, 1)).encode()
"""


class Mesh:
    """Renders, builds and starts the three."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.coordinator = {name: f"127.0.0.1:{free_port()}" for name in ("MESH", "CLIENT", "XDS")}
        self.runtime = make_runtime(folder / "runtime")
        SimulatedPlatform.open(folder / "platform", datetime.now(UTC))
        self.app = folder / "app"
        self.app.mkdir()
        (self.app / "app.py").write_text(APP.format(port=self.port))
        (self.app / "helper.py").write_text(HELPER)

    def render(self, kind: str, *options: str) -> EnclaveRoot:
        file = self.folder / f"{kind}.manifest"
        verb = [sys.executable, "-m", "marblemesh", "gramine-manifest", kind, "--runtime-dir", str(self.runtime)]
        done = subprocess.run([*verb, "-o", str(file), *options], capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        root = EnclaveRoot(tomllib.loads(file.read_text()), self.folder / kind)
        # In a cluster a Secret; all three are on one simulated machine.
        shutil.copytree(self.folder / "platform", root.inside("/tmp/platform"))
        return root

    def worker_env(self, root: EnclaveRoot) -> dict[str, str]:
        env = root.environment(
            {
                "EDG_MARBLE_COORDINATOR_ADDR": self.coordinator["MESH"],
                "EDG_MARBLE_XDS_ADDR": self.coordinator["XDS"],
                "EDG_MARBLE_DNS_NAMES": "localhost,127.0.0.1",
                "EDG_MARBLE_ADVERTISE": "127.0.0.1",
                "EDG_MARBLE_ADMIN_ADDR": "off",
            }
        )
        del env["EDG_ATTESTATION_PLATFORM"]
        return env | {"EDG_MARBLE_SIMULATION": "1", "EDG_SIMULATED_PLATFORM_DIR": "/tmp/platform"}

    def mesh_manifest(self, libraries: str) -> str:
        package = {"SignerID": SIMULATED_SIGNER.hex(), "ProductID": 1, "SecurityVersion": 1}
        incoming = {"Port": str(self.port), "Peers": ["client"]}
        outgoing = {"Addr": "server", "Port": str(self.port)}
        # The worker drops LD_ variables, which the host could have set, unless they come from here.
        parameters = {"Env": {"LD_LIBRARY_PATH": libraries}}
        return json.dumps(
            {
                "Packages": {"hello": package},
                "Marbles": {
                    "server": {"Package": "hello", "TLS": ["serve"]},
                    "client": {"Package": "hello", "TLS": ["ask"], "Parameters": parameters},
                },
                "TLS": {"serve": {"Incoming": [incoming]}, "ask": {"Outgoing": [outgoing]}},
            }
        )


def until(log: Path, text: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while text not in log.read_text():
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.1)


def test_coordinator_worker_and_fused_app_run_with_the_trusted_files_alone(tmp_path: Path) -> None:
    chroot_needed()
    curl = shutil.which(program("curl"))
    mesh = Mesh(tmp_path)
    socket = f"/run/marblemesh/server-{mesh.port}.sock"
    asks = (
        "-sS",
        "--retry",
        "30",
        "--retry-all-errors",
        "--retry-delay",
        "1",
        "--unix-socket",
        socket,
        "http://server/",
    )
    with (
        mesh.render("coordinator") as coordinator,
        mesh.render("fused", "--marble-type", "server", "--app", str(mesh.app / "app.py")) as server,
        mesh.render("worker", "--marble-type", "client", "--app", str(curl), "--", *asks) as client,
    ):
        for marble in (server, client):
            code = [name for name in marble.manifest["sgx"]["trusted_files"] if name.endswith(".py")]
            assert not [name for name in code if "/xds_server/" in name or "/manifests/" in name]
        logs = {name: tmp_path / f"{name}.log" for name in ("refused", "coordinator", "server", "client")}
        env = coordinator.environment({f"EDG_COORDINATOR_{name}_ADDR": a for name, a in mesh.coordinator.items()})
        # As it is, it wants an enclave; what the host says about simulation would not get through.
        assert coordinator.start(env, log=logs["refused"]).wait(timeout=60) == 1
        assert "/dev/attestation: no such directory" in logs["refused"].read_text()
        assert "EDG_COORDINATOR_SIMULATION" not in coordinator.manifest["loader"]["env"]

        del env["EDG_ATTESTATION_PLATFORM"]
        text = mesh.mesh_manifest(client.manifest["loader"]["env"]["LD_LIBRARY_PATH"])
        coordinator.inside("/tmp/manifest.json").write_text(text)
        simulated = (
            "--simulation",
            "--simulated-platform",
            "/tmp/platform",
            "--startup-manifest",
            "/tmp/manifest.json",
        )
        coordinator.start(env, *simulated, log=logs["coordinator"])
        until(logs["coordinator"], "coordinator ready")
        assert (coordinator.inside("/coordinator/data/state/sealed_data")).exists()

        server.start(mesh.worker_env(server), log=logs["server"])
        answer = client.start(mesh.worker_env(client), log=logs["client"])
        assert answer.wait(timeout=60) == 0, logs["client"].read_text()[-3000:] + logs["server"].read_text()[-3000:]
        assert "(0.6666666666666666, 1.0, 1)" in logs["client"].read_text()
        assert client.inside("/client-uid/uuid-file").exists()
