# SPDX-License-Identifier: Apache-2.0
"""One stock Envoy as the Marble `web`, over each of the four ways that it can be served, and traffic through it.

    scene = Scene(VARIANTS["delta-sds"], folder)      # a mesh, an app, nothing running yet
    async with scene.app(), scene.served(), scene.envoy() as envoy: ...

Over ADS the listeners come from the Coordinator. Over SDS Envoy reads them from a file that it watches, and only the
secrets come from the Coordinator, on streams of their own.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from sds.discovery import View
from sds.material import Identity
from sds.resources import BUNDLE_NAME, IDENTITY_NAME
from sds.tls import client_context
from tests.kit.envoy import Envoy, ads_bootstrap, running_envoy, until
from tests.kit.envoy_town import echo_app, write_identity
from tests.kit.mesh import free_port
from tests.kit.xds_mesh import Town, manifest
from tests.kit.xds_port import xds_server
from xds_server.ads import XdsServer
from xds_server.mesh import Client, Mesh

PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class Variant:
    """How Envoy is served: `aggregated` over ADS, else over SDS; `incremental` or state of the world."""

    aggregated: bool
    incremental: bool


VARIANTS = {
    "sotw-ads": Variant(aggregated=True, incremental=False),
    "delta-ads": Variant(aggregated=True, incremental=True),
    "sotw-sds": Variant(aggregated=False, incremental=False),
    "delta-sds": Variant(aggregated=False, incremental=True),
}
Tamper = Callable[[View], View]


class TamperedMesh(Mesh):
    """A mesh of which a test may change what clients see, to make what a Coordinator never sends by itself."""

    tamper: Tamper = staticmethod(lambda view: view)

    def view(self, client: Client) -> View:
        return self.tamper(super().view(client))


class Scene:
    """A mesh whose Marble `web` is an Envoy that serves `ports`; `voting` is who calls it."""

    def __init__(self, variant: Variant, folder: Path, *, ports: int = 1) -> None:
        self.variant = variant
        self.folder = folder
        self.ports = tuple(free_port() for _ in range(ports))
        self.xds_port = free_port()
        self.town = Town(self.manifest(self.ports[:1]), mesh=TamperedMesh, live=True)
        self.web, self.voting = self.town.activate("web"), self.town.activate("voting")
        self.server: XdsServer | None = None
        self._files = write_identity(self.web.identity, self.town, folder)
        self.timeout = "15s"

    @staticmethod
    def manifest(ports: tuple[int, ...]) -> Any:
        tls: dict[str, object] = {"web": {"Incoming": [{"Port": str(port)} for port in ports]}, "voting": {}}
        return manifest(tls=tls, marbles={"web": ["web"], "voting": ["voting"]})

    @property
    def mesh(self) -> TamperedMesh:
        assert isinstance(self.town.mesh, TamperedMesh)
        return self.town.mesh

    @property
    def client(self) -> ssl.SSLContext:
        """TLS of a Marble that may call, with what it holds now."""
        return client_context(self.voting.identity, self.town.ca.bundle)

    # ---- what runs

    @asynccontextmanager
    async def app(self) -> AsyncIterator[None]:
        async with echo_app(self.folder / "app.sock"):
            for port in self.ports:
                (self.folder / f"{port}.sock").symlink_to(self.folder / "app.sock")
            yield

    @asynccontextmanager
    async def served(self) -> AsyncIterator[XdsServer]:
        """The Coordinator's xDS port; always the same one, so that it may end and come back."""
        server = xds_server(self.mesh)
        await server.start("127.0.0.1", self.xds_port, self.town.ca)
        self.server = server
        try:
            yield server
        finally:
            await server.stop()

    @asynccontextmanager
    async def envoy(self) -> AsyncIterator[Envoy]:
        """Envoy with nothing but its identity and the address of the Coordinator."""
        if not self.variant.aggregated:
            self.write_listeners(self.ports[:1])
        async with running_envoy(self.bootstrap(), self.folder) as envoy:
            yield envoy

    def bootstrap(self) -> dict[str, Any]:
        bootstrap = ads_bootstrap(
            xds_port=self.xds_port,
            incremental=self.variant.incremental,
            node_id="an-envoy",
            advertise="127.0.0.1",
            **self._files,
        )
        # Back within half a second after an outage, instead of after up to 30: tests wait for it.
        for grpc in bootstrap["dynamic_resources"]["ads_config"]["grpc_services"]:
            grpc["envoy_grpc"]["retry_policy"] = _PROMPT
        if self.variant.aggregated:
            return bootstrap
        path = {"path_config_source": {"path": str(self.folder / "lds.json")}, "resource_api_version": "V3"}
        bootstrap["dynamic_resources"] = {"lds_config": path}
        app = {
            "name": "app",
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": "app",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": "app.sock"}}}}]}],
            },
        }
        bootstrap["static_resources"]["clusters"].append(app)
        return bootstrap

    # ---- listeners, over SDS

    def write_listeners(self, ports: tuple[int, ...]) -> None:
        """Give Envoy these listeners; it takes the file when another one is moved to its place."""
        listeners = [self._listener(port) for port in ports]
        fresh = self.folder / "lds.json.new"
        fresh.write_text(json.dumps({"version_info": "1", "resources": listeners}))
        fresh.rename(self.folder / "lds.json")

    def _listener(self, port: int) -> dict[str, Any]:
        source = {
            "api_config_source": {
                "api_type": "DELTA_GRPC" if self.variant.incremental else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds", "retry_policy": _PROMPT}}],
            },
            "resource_api_version": "V3",
            "initial_fetch_timeout": self.timeout,
        }
        tls = {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [{"name": IDENTITY_NAME, "sds_config": source}],
                "validation_context_sds_secret_config": {"name": BUNDLE_NAME, "sds_config": source},
            },
        }
        proxy = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "app",
            "cluster": "app",
        }
        return {
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": f"inbound|{port}",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "filter_chains": [
                {
                    "filters": [{"name": "tcp", "typed_config": proxy}],
                    "transport_socket": {"name": "tls", "typed_config": tls},
                }
            ],
        }

    def serve_ports(self, ports: tuple[int, ...]) -> None:
        """Another set of listeners, the way this variant gets them."""
        if self.variant.aggregated:
            self.mesh.configure(self.manifest(ports), self.town.ca)
        else:
            self.write_listeners(ports)

    # ---- what changes

    def next_identity(self) -> Identity:
        identity = self.town.identity("web", self.web.uuid)
        self.mesh.replace_identities({("web", self.web.uuid): identity})
        return identity

    # ---- traffic

    async def exchange(self, port: int | None = None, tls: ssl.SSLContext | None = None) -> x509.Certificate:
        """One new connection and one round trip through the app; the certificate that Envoy showed."""
        connection = await Connection.open(port or self.ports[0], tls or self.client)
        try:
            await connection.ask()
            return connection.certificate
        finally:
            await connection.close()

    async def reachable(self, port: int | None = None, wanted: x509.Certificate | None = None) -> bool:
        """Wait until a new connection is served, with the `wanted` certificate if there is one."""
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE
        while loop.time() < end:
            try:
                if await self.exchange(port) == wanted or wanted is None:
                    return True
            except REFUSED:
                pass
            await asyncio.sleep(0.02)
        return False

    async def settled(self) -> bool:
        """Wait until Envoy has taken everything that it was sent."""
        return bool(await until(self._is_settled, PATIENCE))

    def _is_settled(self) -> bool:
        assert self.server is not None
        kinds = [kind for status in self.server.status() for kind in status.types.values()]
        return bool(kinds) and all(not k.nacked and not k.awaiting_ack and k.sent == k.acked for k in kinds)


# What a connection to a port that does not serve us ends with.
REFUSED = (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError, TimeoutError)
_PROMPT: Mapping[str, Any] = {"retry_back_off": {"base_interval": "0.1s", "max_interval": "0.5s"}}


@dataclass
class Connection:
    """A TLS connection through Envoy to the app, which says back what it hears."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int, tls: ssl.SSLContext) -> Connection:
        async with asyncio.timeout(5):
            return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))

    @property
    def certificate(self) -> x509.Certificate:
        der = self.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der)

    async def ask(self) -> None:
        self.writer.write(b"ping")
        async with asyncio.timeout(5):
            assert await self.reader.readexactly(4) == b"ping"

    async def close(self) -> None:
        self.writer.transport.abort()


@dataclass
class Traffic:
    """Connections that stay and ask all the time, and new ones one after the other; counts, and whatever went wrong."""

    scene: Scene
    requests: int = 0
    handshakes: int = 0
    seen: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    _ending: bool = False

    @asynccontextmanager
    async def flowing(self, connections: int = 10) -> AsyncIterator[Traffic]:
        kept = [await Connection.open(self.scene.ports[0], self.scene.client) for _ in range(connections)]
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._stay(c)) for c in kept] + [loop.create_task(self._come_and_go())]
        try:
            yield self
        finally:
            self._ending = True
            await asyncio.gather(*tasks)
            for connection in kept:
                await connection.close()

    async def _stay(self, connection: Connection) -> None:
        try:
            while not self._ending:
                await connection.ask()
                self.requests += 1
                await asyncio.sleep(0.025)
        except (*REFUSED, AssertionError) as e:
            self.faults.append(f"a kept connection after {self.requests} requests: {e!r}")

    async def _come_and_go(self) -> None:
        while not self._ending:
            try:
                self.seen.add((await self.scene.exchange()).serial_number)
                self.handshakes += 1
            except (*REFUSED, AssertionError) as e:
                self.faults.append(f"a new connection after {self.handshakes}: {e!r}")
            await asyncio.sleep(0.005)
