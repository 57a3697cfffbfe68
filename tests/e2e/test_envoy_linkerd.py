# SPDX-License-Identifier: Apache-2.0
"""Two stock Envoys with a Linkerd between them: attested mTLS from Envoy to Envoy, Linkerd's TLS around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from marblemesh.demo.envoy_binary import FLAGS, envoy_path
from marblemesh.envoy import Config, Originator, Peers, Tcp, Terminator, Unix
from marblemesh.inject.linkerd_ports import COORDINATOR_PORTS
from tests.kit.envoy_town import echo_app
from tests.kit.linkerd_control import Workload
from tests.kit.linkerd_mesh import PORT, PodMesh, captured, two_marbles
from tests.kit.linkerd_metrics import total
from tests.kit.linkerd_pod import Pod, Town, meshed
from tests.kit.linkerd_rules import INBOUND
from tests.kit.mesh import PATIENCE, RunningWorker
from tests.kit.netns import namespaces_needed

pytestmark = pytest.mark.e2e
A, B = "10.77.0.1", "10.77.0.2"
MARKER = b"marker-in-the-app-data-behind-two-envoys"


class EnvoyPods(PodMesh):
    """Envoys carry the data; the workers beside them keep their identities fresh and serve them by SDS."""

    async def start_pair(self) -> None:
        await self.start_coordinator()
        await self.set_manifest(two_marbles())
        self.db = await self._behind_envoy(
            self.town.b,
            "db",
            Terminator(Tcp(B, PORT), Unix(str(self.app)), Peers(("web",)), self._sds("db")).bootstrap(),
        )
        self.web = await self._behind_envoy(
            self.town.a,
            "web",
            Originator(Unix(str(self.door)), Tcp(B, PORT), Peers(("db",)), "db", self._sds("web")).bootstrap(),
        )

    @property
    def app(self) -> Path:
        """Where db's app listens."""
        return self.directory / "app.sock"

    @property
    def door(self) -> Path:
        """Where web's app connects to."""
        return self.directory / "door.sock"

    def _sds(self, marble_type: str) -> Unix:
        return Unix(str(self.directory / marble_type / "r" / "sds.sock"))

    async def _behind_envoy(self, pod: Pod, marble_type: str, config: Config) -> RunningWorker:
        file = self.directory / f"{marble_type}.json"
        await asyncio.to_thread(file.write_text, json.dumps(config))
        return await self.start_in(pod, marble_type, str(envoy_path()), *FLAGS, "-c", str(file), relay="off")

    async def start_in(self, pod: Pod, marble_type: str, *command: str, relay: str = "on") -> RunningWorker:
        address = pod.workload.address
        self._inside = pod.namespace
        return await self.start_worker(
            marble_type, *command, flags=("--relay", relay), env={"EDG_MARBLE_DNS_NAMES": f"localhost,{address}"}
        )


@asynccontextmanager
async def chain(town: Town) -> AsyncIterator[EnvoyPods]:
    with TemporaryDirectory(prefix="mm-") as directory:  # short: sockets lie in it
        async with EnvoyPods(Path(directory), town) as mesh, echo_app(mesh.app):
            await mesh.start_pair()
            yield mesh


async def asked(mesh: EnvoyPods, payload: bytes) -> bytes:
    """The echo of the app, through everything; asked until the Envoys have their certificates."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(mesh.door))
                try:
                    writer.write(payload)
                    return await reader.readexactly(len(payload))
                finally:
                    writer.close()
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.1)


async def test_two_envoys_speak_attested_mtls_through_linkerd_and_no_interface_sees_plaintext() -> None:
    namespaces_needed("iptables-nft-restore")
    pods = Workload("a", A), Workload("b", B, opaque={PORT, *COORDINATOR_PORTS})
    async with meshed(*pods) as town, chain(town) as mesh:
        assert await asked(mesh, b"ready?") == b"ready?"
        with captured(town, MARKER) as captures:
            assert await asked(mesh, MARKER) == MARKER
        assert len(captures) == 4
        assert not any(capture.found[MARKER] or capture.dropped for capture in captures.values())
        assert captures["a"].ciphertext[INBOUND] > 0
        assert captures["a"].ciphertext[PORT] == 0  # between the pods there is only Linkerd's port
        assert captures["b lo"].ciphertext[PORT] > 0  # and within it the mesh's TLS, up to the Envoy
        opened = total(await town.b.metrics(), "tcp_open_total", peer="src", target_port=str(PORT), tls="true")
        assert opened >= 1
