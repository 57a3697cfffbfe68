# SPDX-License-Identifier: Apache-2.0
"""The two ports that anybody may connect to: the client API and the Marble API, each behind TLS.

    client   HTTP/1.1 and HTTP/2   shows the root certificate, alone    a client certificate is asked for
    mesh     HTTP/2 (gRPC) only    shows the Marble root                a client certificate is required

Which certificate is shown is decided at each handshake: a recovery brings another root, an update another Marble root.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from sds.ca import CertificateAuthority
from xds_server.client_api import ALPN, ClientApi
from xds_server.client_api_routes import routes
from xds_server.client_api_xds import XdsView
from xds_server.coordinator import Coordinator
from xds_server.marble_api import MarbleApi
from xds_server.metrics import CoordinatorMetrics
from xds_server.tls_connection import Refused
from xds_server.tls_context import ServerCredential
from xds_server.tls_front import TlsFront, TlsFrontConfig


class _Credentials:
    """What the two ports present; replaced together when another CA takes over."""

    def __init__(self, ca: CertificateAuthority) -> None:
        self.use(ca)

    def use(self, ca: CertificateAuthority) -> None:
        self.root = ServerCredential((ca.root,), ca.root_key.load())
        self.marble_root = ServerCredential((ca.marble_root,), ca.intermediate_key.load())


class PublicPorts:
    """Both ports of one Coordinator; `start` once, `stop` once.

    `refused` is asked for each port ("client", "mesh") for what hears of connections that never got to a protocol;
    `xds` is the third port, of which users may ask how its clients stand (None: there is none).
    """

    def __init__(
        self,
        coordinator: Coordinator,
        metrics: CoordinatorMetrics,
        refused: Callable[[str], Refused],
        xds: XdsView | None = None,
    ) -> None:
        credentials = _Credentials(coordinator.ca)
        coordinator.on_ca(credentials.use)
        self._client_api = ClientApi(routes(coordinator, xds), metrics)
        self._marble_api = MarbleApi(coordinator, metrics).service()
        self._client = TlsFront(
            TlsFrontConfig(alpn=ALPN), lambda: credentials.root, self._client_api.connect, refused("client")
        )
        self._mesh = TlsFront(
            TlsFrontConfig(alpn=(b"h2",), alpn_required=True, require_client_certificate=True),
            lambda: credentials.marble_root,
            self._marble_api.connect,
            refused("mesh"),
        )

    async def start(self, client: socket.socket, mesh: socket.socket) -> None:
        """Accept on these bound sockets."""
        await self._client.start(client)
        await self._mesh.start(mesh)

    async def stop(self, grace: float) -> None:
        """Accept no more; what is in flight has `grace` seconds to end."""
        self._client.stop_accepting()
        self._mesh.stop_accepting()
        self._marble_api.stop()
        await self._client_api.stop(grace)
        await asyncio.gather(self._client.stop(grace), self._mesh.stop(grace))
