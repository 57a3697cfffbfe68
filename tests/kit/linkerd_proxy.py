# SPDX-License-Identifier: Apache-2.0
"""A stand-in for linkerd2-proxy: the same behaviour on the wire for TCP and TLS, told by the same environment.

    python -m tests.kit.linkerd_proxy          # LINKERD2_PROXY_…, as in a pod; started by root, runs as user 2102

Left out: HTTP routing (HTTP is carried as bytes), balancing, IPv6 listeners, SPIRE. As in the real one nothing is
served before the control plane has signed a certificate; /ready says so on the admin port.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401 - used by every look-up of an address, after the change of user
import os
import signal
import socket
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from grpclib import GRPCError
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.exceptions import StreamTerminatedError

from tests.kit.linkerd_flow import Address, Tcp, original_destination
from tests.kit.linkerd_hello import ALPN
from tests.kit.linkerd_inbound import Inbound
from tests.kit.linkerd_metrics import Metrics
from tests.kit.linkerd_outbound import Outbound
from tests.kit.linkerd_policies import Policies, Profiles
from tests.kit.linkerd_rules import PROXY_UID
from tests.kit.linkerd_settings import Settings
from tests.kit.linkerd_wire import CERTIFY, CertifyRequest, CertifyResponse, RawCodec

_RETRY = 0.1


class Identity:
    """The proxy's mesh identity: signed by the control plane, renewed at 70 % of its life, the key stays."""

    def __init__(self, settings: Settings, channel: Channel, metrics: Metrics) -> None:
        self._settings = settings
        self._certify = UnaryUnaryMethod(channel, CERTIFY, bytes, bytes)
        self._metrics = metrics
        key = load_der_private_key((settings.directory / "key.p8").read_bytes(), None)
        self._key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._chain = b""
        self.ready = asyncio.Event()

    async def keep(self) -> None:
        while True:
            try:
                lasts = await self._renew()
            except (OSError, GRPCError, StreamTerminatedError):
                lasts = _RETRY
            await asyncio.sleep(lasts)

    async def _renew(self) -> float:
        """Returns the seconds until the next time."""
        csr, token = (self._settings.directory / "csr.der").read_bytes(), self._settings.token_file.read_bytes()
        request = CertifyRequest(self._settings.identity, token, csr)
        response = CertifyResponse.decode(await self._certify(request.encode()))
        ders = (response.leaf, *response.intermediates)
        self._chain = b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)
        self._metrics.add("control_identity_cert_refreshes_total", {"result": "ok"})
        self._metrics.put("control_identity_cert_expiration_timestamp_seconds", {}, response.valid_until)
        self.ready.set()
        return max(self._settings.min_refresh, 0.7 * (response.valid_until - time.time()))

    def server(self) -> ssl.SSLContext:
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.set_alpn_protocols([ALPN])
        context.num_tickets = 0
        return context

    def client(self, announce_header: bool) -> ssl.SSLContext:
        """The peer's name is compared by whoever dials: identities are no host names."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        if announce_header:
            context.set_alpn_protocols([ALPN])
        return context

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self._settings.anchors)
        with tempfile.NamedTemporaryFile() as pem:
            pem.write(self._chain + self._key)
            pem.flush()
            context.load_cert_chain(pem.name)
        return context


class Proxy:
    """Everything together."""

    def __init__(self, settings: Settings, group: asyncio.TaskGroup) -> None:
        self._settings = settings
        self._group = group
        self.metrics = Metrics()
        self.metrics.put("proxy_build_info", {"version": "stand-in"}, 1)
        self._channel = Channel(*settings.control, codec=RawCodec())
        self.identity = Identity(settings, self._channel, self.metrics)

    async def run(self) -> None:
        """Until it is cancelled."""
        self._spawn(self._admin())
        self._spawn(self.identity.keep())
        await self.identity.ready.wait()
        policies = Policies(self._settings, self._channel, self._spawn)
        profiles = Profiles(self._settings, self._channel, self._spawn)
        inbound = Inbound(self._settings, self.identity.server, policies, self.metrics)
        outbound = Outbound(self._settings, self.identity.client, profiles, self.metrics)

        async def serve_outbound(tcp: Tcp, _peer: Address, wanted: Address) -> None:
            await outbound.serve(tcp, wanted)

        self._spawn(self._accept(self._settings.inbound, inbound.serve))
        self._spawn(self._accept(self._settings.outbound, serve_outbound))

    def _spawn(self, work: Awaitable[None]) -> object:
        async def done() -> None:
            await work

        return self._group.create_task(done())

    async def _accept(self, address: Address, serve: Callable[[Tcp, Address, Address], Awaitable[None]]) -> None:
        listener = socket.create_server(address, backlog=1024)
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            sock, peer = await loop.sock_accept(listener)
            try:
                wanted = original_destination(sock)
            except OSError:
                sock.close()  # no connection tracking: "Server failed to accept connection"
                continue
            self._spawn(serve(Tcp(sock), (peer[0], peer[1]), wanted))

    async def _admin(self) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
            status, body = {
                "/live": ("200 OK", "live\n"),
                "/ready": ("200 OK", "ready\n")
                if self.identity.ready.is_set()
                else ("503 Service Unavailable", "not ready\n"),
                "/metrics": ("200 OK", self.metrics.render()),
            }.get(path, ("404 Not Found", ""))
            writer.write(
                f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            writer.close()

        server = await asyncio.start_server(answer, *self._settings.admin)
        await server.serve_forever()


def become_linkerd() -> None:
    """Go on as Linkerd's user. Not earlier: Python may lie where that user cannot read."""
    os.setgroups([])
    os.setresgid(PROXY_UID, PROXY_UID, PROXY_UID)
    os.setresuid(PROXY_UID, PROXY_UID, PROXY_UID)


async def main() -> None:
    become_linkerd()
    settings = Settings.read(os.environ)  # noqa: TID251 - a program of its own
    async with asyncio.TaskGroup() as group:
        await Proxy(settings, group).run()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    asyncio.run(main())
