# SPDX-License-Identifier: Apache-2.0
"""The inbound half of the Linkerd stand-in: what comes from outside to a port of the pod.

By the port that the connection wanted: the proxy's own (mesh TLS and a transport header, nothing else), an opaque one
(forwarded unseen), any other (the ClientHello is looked for; mesh TLS for this pod ends here, everything else passes;
who says nothing in time is cut off). What HTTP would get is not there: a request is forwarded as bytes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tests.kit.linkerd_flow import Address, Flow, MeshTls, Tcp, join
from tests.kit.linkerd_hello import BUFFER, PEEK, Header, Incomplete, NotTls, header, server_name
from tests.kit.linkerd_metrics import Metrics
from tests.kit.linkerd_policies import Client, Policies
from tests.kit.linkerd_settings import Settings
from tests.kit.linkerd_wire import ServerPolicy

_HTTP_PEEK = 14  # so many bytes tell HTTP from anything else


class Refused(Exception):
    """The connection ends; the text is the metric's `error`."""


@dataclass(slots=True)
class Accepted:
    """A connection in the making. `tls`: the labels that say what was found of TLS; `client`: its mesh identity."""

    flow: Flow
    client_ip: str
    ip: str
    port: int
    tls: dict[str, str]
    client: str = ""


class Inbound:
    """`context` gives the TLS context of the moment."""

    def __init__(
        self, settings: Settings, context: Callable[[], ssl.SSLContext], policies: Policies, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._context = context
        self._policies = policies
        self._metrics = metrics

    async def serve(self, tcp: Tcp, peer: Address, wanted: Address) -> None:
        """One connection, to its end."""
        accepted = Accepted(tcp, peer[0], wanted[0], wanted[1], {})
        try:
            policy = await self._open(accepted, tcp, direct=wanted[1] == self._settings.inbound[1])
            await self._forward(accepted, policy)
        except Refused as error:
            self._metrics.add("inbound_tcp_errors_total", {"error": str(error), **_target(accepted)})
        except (OSError, ValueError, ssl.SSLError):
            self._metrics.add("inbound_tcp_errors_total", {"error": "i/o", **_target(accepted)})
        finally:
            accepted.flow.close()

    async def _open(self, accepted: Accepted, tcp: Tcp, *, direct: bool) -> ServerPolicy:
        """Find out what it is, take mesh TLS off, and who may do what."""
        if direct:
            await self._direct(accepted, tcp)
            return self._policies.get(accepted.port)
        policy = self._policies.get(accepted.port)
        if policy.protocol == "opaque":
            accepted.tls = {"tls": "no_identity", "no_tls_reason": "port_skipped"}
            return policy
        await self._detect(accepted, tcp)
        if policy.protocol == "detect":
            await self._detect_http(accepted, policy)
        return policy

    async def _direct(self, accepted: Accepted, tcp: Tcp) -> None:
        """A peer's proxy that says in a header where it wants to go."""
        mesh = await self._terminate(accepted, tcp)
        if not accepted.client or not mesh.announces_header:
            raise Refused("unexpected")
        found, rest = await self._header(mesh)
        accepted.port = found.port
        if rest:
            mesh.unread(rest)
        self._metrics.add(
            "inbound_tcp_transport_header_connections_total",
            {
                "session_protocol": "",
                "target_port": str(found.port),
                "target_name": found.name,
                "client_id": accepted.client,
            },
        )

    async def _header(self, mesh: MeshTls) -> tuple[Header, bytes]:
        data = b""
        async with _limited(self._settings.inbound_detect, "transport header timeout"):
            while True:
                more = await mesh.read()
                data += more
                try:
                    return header(data)
                except Incomplete:
                    if not more:
                        raise Refused("unexpected") from None

    async def _detect(self, accepted: Accepted, tcp: Tcp) -> None:
        async with _limited(self._settings.inbound_detect, "tls detection timeout"):
            name = await _server_name(tcp)
        if name == self._settings.identity:
            await self._terminate(accepted, tcp)
        elif name:
            accepted.tls = {"tls": "opaque", "sni": name}
        else:
            accepted.tls = {"tls": "no_identity", "no_tls_reason": "no_tls_from_remote"}

    async def _terminate(self, accepted: Accepted, tcp: Tcp) -> MeshTls:
        mesh = MeshTls(tcp, self._context())
        async with asyncio.timeout(self._settings.inbound_detect):
            await mesh.handshake()
        accepted.flow, accepted.client = mesh, mesh.peer
        accepted.tls = {"tls": "true", "client_id": mesh.peer}
        return mesh

    async def _detect_http(self, accepted: Accepted, policy: ServerPolicy) -> None:
        result = "read_timeout"
        with suppress(TimeoutError):
            async with asyncio.timeout(policy.detect_seconds):
                data = b""
                while len(data) < _HTTP_PEEK and (more := await accepted.flow.read()):
                    data += more
                assert isinstance(accepted.flow, Tcp | MeshTls)
                accepted.flow.unread(data)
                result = "http/1" if b"HTTP/1" in data else "not_http"
        self._metrics.add("inbound_tcp_detect_http_results_total", {"result": result, **_server(accepted, policy)})

    async def _forward(self, accepted: Accepted, policy: ServerPolicy) -> None:
        labels = {**_target(accepted), **_server(accepted, policy), **accepted.tls}
        authz = {"authz_group": "", "authz_kind": "default", "authz_name": policy.name}
        client = Client(accepted.port, accepted.client_ip, accepted.ip, accepted.client)
        if not client.allowed_by(policy):
            self._metrics.add("inbound_tcp_authz_deny_total", labels)
            return
        self._metrics.add("inbound_tcp_authz_allow_total", {**labels, **authz})
        source = {"direction": "inbound", "peer": "src", "target_addr": f"{accepted.ip}:{accepted.port}", **labels}
        sink = {"direction": "inbound", "peer": "dst", "tls": "no_identity", "no_tls_reason": "loopback"}
        app = await Tcp.dial((accepted.ip, accepted.port), self._settings.inbound_connect)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as scope:
                with self._policies.open(client, lambda: scope.reschedule(loop.time())):
                    await joined(self._metrics, accepted.flow, app, source, sink)
        except TimeoutError:
            self._metrics.add("inbound_tcp_authz_terminate_total", labels)


async def _server_name(tcp: Tcp) -> str | None:
    """The ClientHello's. One look at what is there, without taking it; if that is too little, reads on, to a bound."""
    try:
        return server_name(await tcp.peek(PEEK))
    except NotTls:
        return None
    except Incomplete:
        data = b""
    while True:
        more = await tcp.read()
        data += more
        name = None
        with suppress(NotTls):
            try:
                name = server_name(data[:BUFFER])
            except Incomplete:
                if more and len(data) < BUFFER:
                    continue
        tcp.unread(data)
        return name


@asynccontextmanager
async def _limited(seconds: float, error: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Refused(error) from None


async def joined(metrics: Metrics, left: Flow, right: Flow, source: Mapping[str, str], sink: Mapping[str, str]) -> None:
    """Join two sides and count it: what is read from one is written to the other."""
    for labels in (source, sink):
        metrics.add("tcp_open_total", labels)
        metrics.add("tcp_open_connections", labels)

    def passed(forth: int, back: int) -> None:
        for labels, read, written in ((source, forth, back), (sink, back, forth)):
            metrics.add("tcp_read_bytes_total", labels, read)
            metrics.add("tcp_write_bytes_total", labels, written)

    try:
        await join(left, right, passed)
    finally:
        for labels in (source, sink):
            metrics.add("tcp_open_connections", labels, -1)
            metrics.add("tcp_close_total", {**labels, "errno": ""})


def _target(accepted: Accepted) -> dict[str, str]:
    return {"target_ip": accepted.ip, "target_port": str(accepted.port)}


def _server(accepted: Accepted, policy: ServerPolicy) -> dict[str, str]:
    return {"srv_group": "", "srv_kind": policy.kind, "srv_name": policy.name, "srv_port": str(accepted.port)}
