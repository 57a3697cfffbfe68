# SPDX-License-Identifier: Apache-2.0
"""What one discovery stream leaves behind for people: metrics, log lines, status."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from sds.discovery import Kind, Receipt, Response, TypeStatus
from xds_server.mesh import Client
from xds_server.xds_metrics import XdsMetrics, short_type


class Log(Protocol):
    """Where streams report; a structlog logger fits."""

    def info(self, event: str, **fields: object) -> object: ...
    def warning(self, event: str, **fields: object) -> object: ...
    def error(self, event: str, **fields: object) -> object: ...


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """Where one stream stands: who, since when, and per type what was sent, taken and rejected."""

    client: str
    role: str
    variant: str
    since: datetime
    types: Mapping[str, TypeStatus] = field(default_factory=dict)


class StreamRecord:
    """One stream of one client. `received` and `sent` stand in every push's way: they must stay cheap."""

    def __init__(self, client: Client, variant: str, since: datetime, log: Log, metrics: XdsMetrics) -> None:
        self._client = client
        self._variant = variant
        self._since = since
        self._log = log
        self._metrics = metrics
        self._written: dict[str, float] = {}

    def received(self, receipt: Receipt) -> None:
        """A request was taken into account."""
        label = short_type(receipt.type_url)
        if receipt.kind is Kind.STALE:
            self._metrics.stale.labels(label).inc()
        elif receipt.kind is Kind.NACK:
            self._metrics.nacks.labels(label).inc()
            self._log.warning("push rejected by client", client=str(self._client), type=label, error=receipt.error)
        elif receipt.kind is Kind.ACK:
            self._metrics.acks.labels(label).inc()
            if (written := self._written.pop(receipt.type_url, None)) is not None:
                self._metrics.ack_seconds.labels(label).observe(time.monotonic() - written)

    def sent(self, response: Response) -> None:
        """A response was written."""
        label = short_type(response.type_url)
        self._written[response.type_url] = time.monotonic()
        self._metrics.pushes.labels(label).inc()
        self._metrics.push_bytes.labels(label).inc(len(response.body))

    def unresolved(self, fault: Exception) -> None:
        """The DNS name under which the client says that it can be reached has no address."""
        client = str(self._client)
        self._log.warning("advertised name not resolved, no endpoint", client=client, error=type(fault).__name__)

    def status(self, types: Mapping[str, TypeStatus]) -> ClientStatus:
        """Where the stream stands, given what its rules say of each type."""
        return ClientStatus(str(self._client), self._client.role.value, self._variant, self._since, types)
