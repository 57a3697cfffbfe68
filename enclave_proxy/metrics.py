# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics, read from the parts when scraped: nothing is counted twice and nothing costs between scrapes.

Labels are listener names, type names and fixed reasons: never an instance, never an address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from enclave_proxy.health import Health
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.local_metrics import local_metrics
from enclave_proxy.relay_metrics import relay_metrics
from enclave_proxy.session import Session

_PREFIX = "marblemesh_worker_"


def make_registry(health: Health) -> CollectorRegistry:
    """A registry of this worker's own; the process-wide default one stays untouched."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(health))
    return registry


class WorkerCollector(Collector):
    """Turns the worker's numbers into metric families."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """All families; parts that do not exist yet are simply missing."""
        health = self._health
        info = GaugeMetricFamily(f"{_PREFIX}info", "Who this worker is", labels=["marble_type", "uuid", "simulation"])
        info.add_metric([health.marble_type, health.uuid, str(health.simulation).lower()], 1)
        yield info
        yield _gauge("ready", "1 if this Marble serves", health.not_ready() is None)
        yield _gauge("tasks", "Tasks of this process's event loop", len(asyncio.all_tasks()))
        yield _gauge("revoked", "1 if the Coordinator has turned this Marble out", bool(health.revoked))
        if health.store is not None:
            yield from _certificates(health.store)
        if health.session is not None:
            yield from _control_plane(health.session)
        yield from _app(health)
        if health.counters is not None:
            yield from relay_metrics(health.counters)
            yield from _processes(health)
        yield from local_metrics(health.sockets)


def _certificates(store: IdentityStore) -> Iterator[Metric]:
    credentials = store.credentials
    expiry = GaugeMetricFamily(
        f"{_PREFIX}certificate_expiry_timestamp_seconds", "When it expires, as Unix time", labels=["certificate"]
    )
    expiry.add_metric(["identity"], credentials.identity.not_after.timestamp())
    bundle = min(certificate.not_valid_after_utc for certificate in credentials.bundle.certificates)
    expiry.add_metric(["bundle"], bundle.timestamp())
    yield expiry
    yield _gauge(
        "certificate_issued_timestamp_seconds",
        "When the identity in use became valid, as Unix time",
        credentials.identity.not_before.timestamp(),
    )
    yield _gauge("secrets_withheld", "Secrets not fit to be given to local clients", len(store.withheld))


def _app(health: Health) -> Iterator[Metric]:
    app = health.app
    yield _gauge("app_running", "1 if the app runs", app.running)
    yield _counter("app_restarts", "Times that the app was started again", max(app.starts - 1, 0))
    yield _gauge("started_offline", "1 if this worker started without the Coordinator", bool(health.started_offline))


def _processes(health: Health) -> Iterator[Metric]:
    fleet = health.fleet
    wanted, living, restarted = (1, 1, 0) if fleet is None else (fleet.size, len(fleet.processes) + 1, fleet.restarted)
    yield _gauge("relay_processes", "Relay processes that live, this one among them", living)
    yield _gauge("relay_processes_configured", "How many there should be", wanted)
    yield _counter("relay_process_restarts", "Relay processes that died and were started again", restarted)


def _control_plane(session: Session) -> Iterator[Metric]:
    status = session.status
    yield _gauge("control_plane_connected", "1 if the stream to the Coordinator is up", status.connected)
    yield _counter("control_plane_attempts", "Attempts to connect to the Coordinator", status.attempts)
    yield _counter("reactivations", "Times that this worker went over to a new Coordinator", status.reactivations)
    updates = CounterMetricFamily(f"{_PREFIX}xds_updates", "Pushes accepted", labels=["type"])
    for kind, count in status.updates.items():
        updates.add_metric([kind], count)
    yield updates
    nacks = CounterMetricFamily(f"{_PREFIX}xds_nacks", "Pushes refused", labels=["type"])
    for kind, count in status.nacks.items():
        nacks.add_metric([kind], count)
    yield nacks
    when = GaugeMetricFamily(f"{_PREFIX}xds_last_nack_timestamp_seconds", "As Unix time", labels=["type"])
    for kind, nack in status.last_nacks.items():
        when.add_metric([kind], nack.at.timestamp())
    yield when
    waiting = len(session.waiting_listeners())
    yield _gauge("listeners_waiting", "Listeners that were pushed and are not live", waiting)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, text, value=value)
