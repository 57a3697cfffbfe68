# SPDX-License-Identifier: Apache-2.0
"""Dialling: the app behind an inbound listener, the peers behind an outbound one.

    endpoints known? ► choose ► connect (the next one too, if it is slow) ► handshake ► name allowed? ► the peer
                         ▲                 │                 │                 │
                         └─────────────────┴─────────────────┴─────────────────┘ another endpoint, at most so many times

Whatever fails before the peer is admitted moves on to another endpoint, because not one byte of the app has left yet;
after that nothing is ever retried. Where there is no other endpoint, the same is asked again after a moment, unless it
gave an answer: a wrong name stays wrong, and a timeout has cost enough.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import time

from cryptography import x509

from enclave_proxy.admission import Refused, objection
from enclave_proxy.backoff import Backoff
from enclave_proxy.clusters import Attempts, Clusters
from enclave_proxy.counters import Refusal
from enclave_proxy.eyeballs import family_of, race
from enclave_proxy.limits import Limits
from enclave_proxy.listener import Serving, tune
from enclave_proxy.relay_config import Address, Membership, Outbound, TcpAddress, UnixAddress
from enclave_proxy.resolver import Resolver, Unresolved
from enclave_proxy.stream import PlainStream
from enclave_proxy.tls_stream import TlsStream
from enclave_proxy.trace import Trace

# A connected peer that may talk, and the certificate that it showed.
Admitted = tuple[TlsStream, x509.Certificate | None]

# Between two attempts at the same endpoint, in seconds: Envoy's base and cap of a retry's back-off.
_AGAIN, _AGAIN_CAP = 0.025, 0.25
# How soon to knock again at an app whose backlog is full.
_KNOCK = 0.01
_STREAM = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
# Not the peer's fault: no descriptors, memory, buffers or ports on our side, or a filter of our own.
_OURS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EPERM, errno.EACCES}
)


async def dial_app(address: Address, limits: Limits, resolver: Resolver) -> PlainStream:
    """Connect to the app in plaintext. Raises Refused(UPSTREAM_UNAVAILABLE) if it does not answer in time."""
    try:
        if isinstance(address, UnixAddress):
            return PlainStream(await _connect_unix(address, limits))
        return PlainStream(await _connect_app(address, limits, resolver))
    except (OSError, TimeoutError) as e:
        raise Refused(Refusal.UPSTREAM_UNAVAILABLE, f"app at {address} does not answer: {_why(e)}") from None


async def _connect_unix(address: UnixAddress, limits: Limits) -> socket.socket:
    """A UNIX socket connects at once or not at all: an app with a full backlog must be asked again (connect(2))."""
    connection = socket.socket(socket.AF_UNIX, _STREAM)
    try:
        deadline = time.monotonic() + limits.connect_timeout
        while True:
            try:
                connection.connect(address.path)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError from None
                await asyncio.sleep(_KNOCK)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


async def dial_peer(
    serving: Serving, clusters: Clusters, limits: Limits, membership: Membership, trace: Trace
) -> Admitted:
    """Connect to one of the peer's endpoints and admit it before anything is sent.

    It counts as in flight there until the calling task ends: each connection has a task of its own. Raises the last
    endpoint's Refused if none can be used.
    """
    route = serving.route
    if not isinstance(route, Outbound):
        raise TypeError("only an outbound route has a peer to dial")
    try:
        cluster = await clusters.locate(route, limits.connect_timeout)
    except Unresolved as e:
        raise Refused(Refusal.NO_ENDPOINT, f"name {route.endpoints} cannot be resolved: {e}") from None
    attempts = Attempts(cluster, limits.attempts)
    pause = Backoff(random.random, initial=_AGAIN, cap=_AGAIN_CAP, floor=_AGAIN / 2)
    try:
        while True:
            dial = _Dial(attempts, serving, limits, membership, trace)
            admitted = await dial.round()
            if admitted is not None:
                return admitted
            if not dial.worth_again or not attempts.again():
                raise dial.refused
            await asyncio.sleep(pause.next())
    finally:
        attempts.close()


class _Dial:
    """One round over the endpoints."""

    def __init__(
        self, attempts: Attempts, serving: Serving, limits: Limits, membership: Membership, trace: Trace
    ) -> None:
        self.refused = Refused(Refusal.NO_ENDPOINT, "no endpoint is known")
        self.worth_again = False
        self._attempts = attempts
        self._serving = serving
        self._limits = limits
        self._membership = membership
        self._trace = trace

    async def round(self) -> Admitted | None:
        """An admitted peer; None if nobody is left to try, and then `refused` says why."""
        limits = self._limits
        while True:
            connected = await race(self._attempts.next, self._no_connection, _open, within=limits.connect_timeout)
            if connected is None:
                return None
            address, connection = connected
            self._attempts.connected(address)
            self._trace.upstream = address
            try:
                admitted = await _admitted_peer(connection, self._serving, limits, self._membership, self._trace)
            except Refused as e:
                self._attempts.failed(address)
                self._note(address, e, may_pass=e.reason is Refusal.ABORTED)
                continue
            self._attempts.keep(address, _this_task())
            return admitted

    def _no_connection(self, address: TcpAddress, error: OSError) -> None:
        ours = error.errno in _OURS
        self._trace.upstream = address
        self._attempts.drop(address) if ours else self._attempts.failed(address)
        why = Refused(
            Refusal.UPSTREAM_UNAVAILABLE, f"{'cannot connect' if ours else 'peer does not answer'}: {_why(error)}"
        )
        self._note(address, why, may_pass=not isinstance(error, TimeoutError))

    def _note(self, address: TcpAddress, why: Refused, *, may_pass: bool) -> None:
        self.refused = Refused(why.reason, f"{address}: {why.detail}")
        self.worth_again = may_pass


async def _admitted_peer(
    connection: socket.socket, serving: Serving, limits: Limits, membership: Membership, trace: Trace
) -> Admitted:
    """Handshake on a connected socket, which this owns from now on, and judge the peer. Raises Refused."""
    route = serving.route
    if not isinstance(route, Outbound):
        raise TypeError("only an outbound route has a peer to dial")
    stream = TlsStream(serving.context, connection, lambda peer: objection(route.peer, peer, membership))
    try:
        return stream, await trace.shake_hands(stream, stream.connect(limits.handshake_timeout, route.sni))
    except BaseException:
        stream.dismiss()
        raise


async def _connect_app(address: TcpAddress, limits: Limits, resolver: Resolver) -> socket.socket:
    """A connected TCP socket; of a host that is a name, the first of its addresses that answers. Raises OSError."""
    hosts: tuple[str, ...] = (address.host,)
    if not _is_ip(address.host):
        try:
            hosts = await resolver.resolve(address.host, limits.connect_timeout)
        except Unresolved as e:
            raise OSError(errno.EHOSTUNREACH, f"its name cannot be resolved: {e}") from None
    addresses = iter([TcpAddress(host, address.port) for host in hosts])
    errors: list[OSError] = []
    connected = await race(
        lambda: next(addresses, None), lambda _, error: errors.append(error), _open, within=limits.connect_timeout
    )
    if connected is None:
        raise errors[-1]
    return connected[1]


def _open(family: socket.AddressFamily) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        tune(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_ip(host: str) -> bool:
    try:
        family_of(host)
    except OSError:
        return False
    return True


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a peer is dialled by a task of its own")
    return task


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not getattr(error, "strerror", None):
        return "timed out"
    return getattr(error, "strerror", None) or type(error).__name__
