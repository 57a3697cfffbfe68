# SPDX-License-Identifier: Apache-2.0
"""The outbound half of the Linkerd stand-in: TCP connections of the pod's other processes.

The control plane says for each destination whether a proxy is there: then the bytes go in mesh TLS, to the port itself
or, announced by a transport header, to the proxy's own. Otherwise they go as they are.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable

from grpclib import GRPCError
from grpclib.exceptions import StreamTerminatedError

from tests.kit.linkerd_flow import Address, Flow, MeshTls, Tcp
from tests.kit.linkerd_hello import Header
from tests.kit.linkerd_inbound import joined
from tests.kit.linkerd_metrics import Metrics
from tests.kit.linkerd_policies import Profiles
from tests.kit.linkerd_settings import Settings
from tests.kit.linkerd_wire import Endpoint, Profile

_HTTP_PEEK = 14


class Outbound:
    """`context` gives the TLS context of the moment: with ALPN if it is told that a header follows."""

    def __init__(
        self, settings: Settings, context: Callable[[bool], ssl.SSLContext], profiles: Profiles, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._context = context
        self._profiles = profiles
        self._metrics = metrics

    async def serve(self, tcp: Tcp, wanted: Address) -> None:
        """One connection, to its end."""
        try:
            if wanted[0].startswith("127."):
                raise ConnectionRefusedError("loopback")
            profile = await self._profiles.get(wanted) if self._known(wanted) else Profile()
            if not profile.opaque:
                await self._detect_http(tcp)
            endpoint = profile.endpoint or Endpoint(*wanted)
            flow, labels = await self._connect(endpoint)
            target = _target((endpoint.ip, endpoint.port))
            source = {"direction": "outbound", "peer": "src", "tls": "no_identity", "no_tls_reason": "loopback"}
            sink = {"direction": "outbound", "peer": "dst", **target, **labels}
            await joined(self._metrics, tcp, flow, {**source, **_target(wanted)}, sink)
        except (OSError, ssl.SSLError, GRPCError, StreamTerminatedError):
            self._metrics.add("outbound_tcp_errors_total", {"error": "i/o", **_target(wanted)})
        finally:
            tcp.close()

    def _known(self, wanted: Address) -> bool:
        address = ipaddress.ip_address(wanted[0])
        return any(address in network for network in self._settings.networks)

    async def _detect_http(self, tcp: Tcp) -> None:
        """Waits for bytes that tell HTTP from anything else, or for long enough. Goes on as opaque in any case."""
        try:
            async with asyncio.timeout(self._settings.outbound_detect):
                data = b""
                while len(data) < _HTTP_PEEK and (more := await tcp.read()):
                    data += more
                tcp.unread(data)
        except TimeoutError:
            result = "read_timeout"
        else:
            result = "http/1" if b"HTTP/1" in data else "not_http"
        self._metrics.add("outbound_tcp_detect_http_results_total", {"result": result})

    async def _connect(self, endpoint: Endpoint) -> tuple[Flow, dict[str, str]]:
        port = endpoint.transport_port or endpoint.port
        if endpoint.identity is None or endpoint.ip in self._settings.inbound_ips:
            reason = "loopback" if endpoint.identity else "not_provided_by_service_discovery"
            tcp = await Tcp.dial((endpoint.ip, endpoint.port), self._settings.outbound_connect)
            return tcp, {"tls": "no_identity", "no_tls_reason": reason}
        tcp = await Tcp.dial((endpoint.ip, port), self._settings.outbound_connect)
        mesh = MeshTls(tcp, self._context(endpoint.transport_port is not None), endpoint.identity)
        try:
            async with asyncio.timeout(self._settings.outbound_connect):
                await mesh.handshake()
            if mesh.peer != endpoint.identity:
                raise ConnectionAbortedError(f"{mesh.peer!r} is not {endpoint.identity!r}")
            if endpoint.transport_port is not None:
                await mesh.write(Header(endpoint.port).encode())
        except BaseException:
            mesh.close()
            raise
        return mesh, {"tls": "true", "server_id": endpoint.identity}


def _target(address: Address) -> dict[str, str]:
    return {"target_addr": f"{address[0]}:{address[1]}", "target_ip": address[0], "target_port": str(address[1])}
