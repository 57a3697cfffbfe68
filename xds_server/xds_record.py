# SPDX-License-Identifier: Apache-2.0
"""What one discovery stream leaves behind for people: metrics, log lines, status."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from sds.discovery import Kind, Receipt, Response, TypeStatus
from sds.wire.discovery_pb2 import Node
from xds_server.mesh import Client
from xds_server.xds_convergence import Change
from xds_server.xds_metrics import XdsMetrics, short_type

# Changes that one client may be behind; of more, the later ones do not wait for it to be counted as having arrived.
_MAX_BEHIND = 64
_MAX_TEXT = 128


class Log(Protocol):
    """Where streams report; a structlog logger fits."""

    def info(self, event: str, **fields: object) -> object: ...
    def warning(self, event: str, **fields: object) -> object: ...
    def error(self, event: str, **fields: object) -> object: ...


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """Where one stream stands: who, since when, and per type what was sent, taken and rejected, and the last push.

    `method` is the last part of the gRPC method; `node` and `agent` are what the client says of itself.
    """

    client: str
    role: str
    method: str
    variant: str
    since: datetime
    node: str = ""
    agent: str = ""
    types: Mapping[str, TypeStatus] = field(default_factory=dict)
    pushed: Mapping[str, datetime] = field(default_factory=dict)


class StreamRecord:
    """One stream of one client. `told`, `sent`, `received` and `idle` stand in every push's way: they must be cheap."""

    __slots__ = (
        "_behind",
        "_log",
        "_metrics",
        "_pushed",
        "_since",
        "_told",
        "_unanswered",
        "client",
        "method",
        "variant",
    )

    def __init__(
        self, client: Client, method: str, variant: str, since: datetime, log: Log, metrics: XdsMetrics
    ) -> None:
        self.client = client
        self.method = method
        self.variant = variant
        self._since = since
        self._log = log
        self._metrics = metrics
        self._pushed: dict[str, float] = {}  # when each type was last pushed
        self._unanswered: dict[str, float] = {}  # the same, where no answer has come yet
        self._behind: list[Change] = []
        self._told: float | None = None

    # ---- from the stream

    def received(self, receipt: Receipt) -> None:
        """A request was taken into account."""
        metrics = self._metrics.of(receipt.type_url)
        if receipt.missing:
            (metrics.forbidden if receipt.forbidden else metrics.not_found).inc(receipt.missing)
        if receipt.kind is Kind.STALE:
            metrics.expired_nonces.inc()
        elif receipt.kind is Kind.ACK:
            metrics.acks.inc()
            if (written := self._unanswered.pop(receipt.type_url, None)) is not None:
                metrics.ack_seconds.observe(time.monotonic() - written)
        elif receipt.kind is Kind.NACK:
            metrics.nacks.inc()
            self._unanswered.pop(receipt.type_url, None)
            self._log.warning(
                "push rejected by client",
                client=str(self.client),
                type=short_type(receipt.type_url),
                error=receipt.error,
            )

    def told(self, change: Change) -> None:
        """The stream was told to look again, because of this change."""
        if self._told is None:
            self._told = time.monotonic()
        if len(self._behind) < _MAX_BEHIND:
            change.told()
            self._behind.append(change)

    def sent(self, response: Response, began: float) -> None:
        """A response was written; making it began at this `time.monotonic()`."""
        now = time.monotonic()
        metrics = self._metrics.of(response.type_url)
        metrics.pushes.inc()
        metrics.push_seconds.observe(now - began)
        metrics.size.observe(len(response.body))
        if self._told is not None:
            self._metrics.queue_seconds.observe(began - self._told)
            self._told = None
        self._pushed[response.type_url] = self._unanswered[response.type_url] = now

    def idle(self) -> None:
        """There is nothing (more) to write: once all is answered, the client is where the mesh is."""
        self._told = None
        if self._behind and not self._unanswered:
            self._arrive()

    def closed(self) -> None:
        """The stream is over: nobody waits for its answers."""
        self._arrive()

    def write_timed_out(self) -> None:
        """The client did not read a response in time."""
        self._metrics.write_timeouts.inc()

    def aged(self) -> None:
        """The stream is old enough to end."""
        self._metrics.aged.inc()

    def unresolved(self, fault: Exception) -> None:
        """The DNS name under which the client says that it can be reached has no address."""
        client = str(self.client)
        self._log.warning("advertised name not resolved, no endpoint", client=client, error=type(fault).__name__)

    def _arrive(self) -> None:
        for change in self._behind:
            change.arrived()
        self._behind = []

    # ---- about

    @property
    def pending(self) -> int:
        """How many responses wait for an answer."""
        return len(self._unanswered)

    def awaits(self, type_url: str) -> bool:
        """Whether one of this type does."""
        return type_url in self._unanswered

    def unanswered_for(self, now: float) -> float:
        """For how many seconds the oldest of them waits, at this `time.monotonic()`."""
        return now - min(self._unanswered.values(), default=now)

    def status(self, types: Mapping[str, TypeStatus], node: Node | None, now: datetime) -> ClientStatus:
        """Where the stream stands at `now`, given what its rules say of each type."""
        passed = time.monotonic()
        return ClientStatus(
            client=str(self.client),
            role=self.client.role.value,
            method=self.method,
            variant=self.variant,
            since=self._since,
            node="" if node is None else _printable(node.id),
            agent="" if node is None else _printable(f"{node.user_agent_name} {node.user_agent_version}"),
            types=types,
            pushed={url: now - timedelta(seconds=passed - at) for url, at in self._pushed.items()},
        )


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_TEXT]).strip()
