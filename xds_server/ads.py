# SPDX-License-Identifier: Apache-2.0
"""The Coordinator's xDS port over mutual TLS: which services it has, and how it begins and ends.

    transport (rpc) ─► gate ─► streams   aggregated and per-type discovery   ◄─ followers ─ Mesh
                            ├► csds      what a client's own streams stand at
                            └► health, reflection

Messages travel as raw bytes: `sds.discovery` parses the little it needs in microseconds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

from sds.ca import CertificateAuthority
from sds.publish_gate import Owner, Withheld
from xds_server import xds_csds, xds_health, xds_reflection
from xds_server.descriptors import Services, discovery_method
from xds_server.mesh import Mesh
from xds_server.rpc import Handler, RpcServer, Transport
from xds_server.xds_credentials import ServerTls
from xds_server.xds_followers import Followers
from xds_server.xds_gate import Gate
from xds_server.xds_limits import XdsLimits
from xds_server.xds_metrics import Now, XdsMetrics, short_type
from xds_server.xds_record import ClientStatus, Log
from xds_server.xds_session import Session
from xds_server.xds_streams import SERVICES, Streams

STOP_SECONDS = 2.0


class XdsServer:
    """Serves one Mesh. `start` once, `stop` once."""

    def __init__(
        self,
        mesh: Mesh,
        transport: Transport,
        log: Log,
        metrics: XdsMetrics,
        *,
        identifier: str = "marblemesh-coordinator",
        limits: XdsLimits | None = None,
    ) -> None:
        limits = limits or XdsLimits()
        self._mesh = mesh
        self._transport = transport
        self._log = log
        self._metrics = metrics
        self._gate = Gate(limits, log, metrics, time.monotonic)
        self._streams = Streams(mesh, limits, log, metrics, identifier, self._gate.judge)
        self._followers = Followers(
            mesh,
            self._streams,
            self._gate,
            log,
            metrics,
            on_change=self._follow_new_ca,
            before_push=self._follow_ca,
            look_seconds=limits.look,
        )
        services = _services()
        self._csds = xds_csds.Csds(mesh, self._streams)
        self._health = xds_health.Health(mesh, services)
        self._reflection = xds_reflection.Reflection(services)
        self._server: RpcServer | None = None
        self._tls: ServerTls | None = None
        self._ca: CertificateAuthority | None = None
        self._unread: Callable[[], None] = lambda: None

    async def start(self, host: str, port: int, ca: CertificateAuthority) -> int:
        """Listen; returns the port (useful with 0). Raises OSError if the address cannot be had."""
        self._ca = ca
        self._tls = ServerTls(ca, self._mesh.trusted_certificates(), self._mesh.now())
        server = self._transport(self._handlers(), self._tls)
        bound = await server.start(host, port)
        self._server = server
        self._followers.start()
        self._health.start()
        self._unread = self._metrics.read_at_scrape(self._now)
        return bound

    async def stop(self) -> None:
        """End all streams (clients are told to come back) and stop listening."""
        self._unread()
        self._unread = lambda: None
        self._health.stop()
        self._gate.stop()
        await self._followers.stop()
        self._log.info("xds server stops", streams=len(self._streams.open))
        self._streams.stop()
        if self._server is not None:
            await self._server.stop(STOP_SECONDS)
            self._server = None

    def status(self) -> tuple[ClientStatus, ...]:
        """Every open stream: who has what, and who rejected what."""
        return self._streams.status()

    def open_streams(self) -> tuple[Session, ...]:
        """The same, without looking at any."""
        return tuple(self._streams.open)

    def withheld(self) -> Iterator[tuple[Owner, Withheld]]:
        """Secrets that are not fit to be published, and for whom."""
        return self._mesh.published.withheld

    def _handlers(self) -> dict[str, Handler]:
        gate = self._gate
        beside = {**self._csds.handlers(), **self._reflection.handlers()}
        return {
            **{path: gate.guard(serve) for path, serve in self._streams.handlers().items()},
            **{path: gate.guard(gate.for_a_while(serve)) for path, serve in beside.items()},
            # Whoever asks how we are must hear it above all when a whole mesh waits for admission.
            **{p: gate.guard(gate.for_a_while(serve), at_once=True) for p, serve in self._health.handlers().items()},
        }

    def _follow_new_ca(self) -> None:
        """At once: who was just activated under another CA is here before the next push."""
        if self._mesh.ca is not self._ca:
            self._follow_ca()

    def _follow_ca(self) -> None:
        """The certificate that we show, and those that let a client in; before anybody is given one of a new root."""
        if self._tls is None:
            return
        trusted, ca = self._mesh.trusted_certificates(), self._mesh.ca
        if ca is not None and ca is not self._ca:
            self._ca = ca
            self._tls.use_ca(ca, trusted, self._mesh.now())
        else:
            self._tls.trust(trusted)

    def _now(self) -> Now:
        subscriptions: Counter[str] = Counter()
        pending = 0
        for session in self._streams.open:
            pending += session.record.pending
            for type_url, count in session.subscriptions:
                subscriptions[short_type(type_url)] += count
        withheld = Counter(entry.part for _, entry in self._mesh.published.withheld)
        return Now(subscriptions, pending, self._gate.waiting, self._expiry(), withheld)

    def _expiry(self) -> dict[str, float]:
        found: dict[str, float] = {}
        if self._tls is not None:
            found["coordinator"] = self._tls.current.identity.not_after.timestamp()
        if self._mesh.ca is not None:
            found["marble_root"] = self._mesh.ca.marble_root.not_valid_after_utc.timestamp()
        if marbles := self._mesh.marbles:
            found["identities"] = min(marble.identity.not_after for marble in marbles).timestamp()
        return found


def _services() -> Services:
    """Everything that the port serves, as reflection tells it."""
    return {
        **{service: {name: discovery_method(name) for name in methods} for service, methods in SERVICES.items()},
        xds_csds.SERVICE: xds_csds.METHODS,
        xds_health.SERVICE: xds_health.METHODS,
        **{service: xds_reflection.methods(service) for service in xds_reflection.SERVICES},
    }
