# SPDX-License-Identifier: Apache-2.0
"""Dialling: the app behind an inbound listener, the peers behind an outbound one.

A peer is dialled in rounds over its endpoints. Whatever fails before the peer is admitted (connect, handshake, name)
moves on to the next endpoint, because not one byte of the app has left yet; after that nothing is ever retried.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from cryptography import x509

from enclave_proxy.admission import Refused, admit, handshake_refusal
from enclave_proxy.counters import Refusal
from enclave_proxy.limits import Limits
from enclave_proxy.listener import Serving
from enclave_proxy.pump import Half
from enclave_proxy.relay_config import Address, DnsTarget, Membership, Outbound, TcpAddress, UnixAddress

# A connected peer that may talk, and the certificate that it showed.
Admitted = tuple[Half, x509.Certificate | None]


async def dial_app(address: Address, limits: Limits) -> Half:
    """Connect to the app in plaintext. Raises Refused(UPSTREAM_UNAVAILABLE) if it does not answer in time."""
    loop = asyncio.get_running_loop()
    half = Half()
    try:
        async with asyncio.timeout(limits.connect_timeout):
            if isinstance(address, UnixAddress):
                await loop.create_unix_connection(lambda: half, address.path)
            else:
                await loop.create_connection(lambda: half, sock=await _connect(address, limits))
    except (OSError, TimeoutError) as e:
        raise Refused(Refusal.UPSTREAM_UNAVAILABLE, f"app at {address} does not answer: {_why(e)}") from None
    return half


async def dial_peer(serving: Serving, turn: int, limits: Limits, membership: Membership) -> Admitted:
    """Connect to one of the peer's endpoints, starting with number `turn`, and admit it before anything is sent.

    Raises the last endpoint's Refused if none can be used.
    """
    route = serving.route
    if not isinstance(route, Outbound):
        raise TypeError("only an outbound route has a peer to dial")
    endpoints = await _endpoints(route, limits)
    refused = Refused(Refusal.NO_ENDPOINT, "no endpoint is known")
    for attempt in range(min(len(endpoints), limits.attempts)):
        endpoint = endpoints[(turn + attempt) % len(endpoints)]
        try:
            half = await _dial_endpoint(endpoint, serving, route, limits)
            return _admitted(half, route, membership)
        except Refused as e:
            refused = Refused(e.reason, f"{endpoint}: {e.detail}")
    raise refused


async def _dial_endpoint(endpoint: TcpAddress, serving: Serving, route: Outbound, limits: Limits) -> Half:
    try:
        async with asyncio.timeout(limits.connect_timeout):
            connection = await _connect(endpoint, limits)
    except (OSError, TimeoutError) as e:
        raise Refused(Refusal.UPSTREAM_UNAVAILABLE, f"peer does not answer: {_why(e)}") from None
    half = Half()
    try:
        await asyncio.get_running_loop().create_connection(
            lambda: half,
            sock=connection,
            ssl=serving.context,
            server_hostname=route.sni,
            ssl_handshake_timeout=limits.handshake_timeout,
            ssl_shutdown_timeout=limits.linger,
        )
    except OSError as e:
        raise handshake_refusal(e) from None
    return half


def _admitted(half: Half, route: Outbound, membership: Membership) -> Admitted:
    try:
        return half, admit(route.peer, peer_certificate(half), membership)
    except Refused:
        half.transport.abort()
        raise


def peer_certificate(half: Half) -> bytes | None:
    """The DER certificate of the peer behind a TLS transport; None if it showed none."""
    der: bytes | None = half.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return der


def tune(connection: socket.socket) -> None:
    """Options for a TCP connection that carries other people's messages.

    asyncio sets TCP_NODELAY only on sockets that it made itself; without it a request in two writes waits 40 ms.
    Keepalive ends connections whose peer vanished without a word, after 60 + 4 * 15 seconds.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


async def _endpoints(route: Outbound, limits: Limits) -> Sequence[TcpAddress]:
    if not isinstance(route.endpoints, DnsTarget):
        return route.endpoints
    return await _resolve(route.endpoints.host, route.endpoints.port, limits)


async def _resolve(host: str, port: int, limits: Limits) -> Sequence[TcpAddress]:
    try:
        async with asyncio.timeout(limits.connect_timeout):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as e:
        raise Refused(Refusal.NO_ENDPOINT, f"name {host} cannot be resolved: {_why(e)}") from None
    return [TcpAddress(str(address[0]), port) for _, _, _, _, address in found]


async def _connect(address: TcpAddress, limits: Limits) -> socket.socket:
    """A connected TCP socket; a host that is a name is resolved and its first address taken."""
    if not _is_ip(address.host):
        address = (await _resolve(address.host, address.port, limits))[0]
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        tune(connection)
        await asyncio.get_running_loop().sock_connect(connection, (address.host, address.port))
    except BaseException:
        connection.close()
        raise
    return connection


def _is_ip(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False


def _why(error: BaseException) -> str:
    return "timed out" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or type(error).__name__
