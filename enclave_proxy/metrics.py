# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics, read from the parts when scraped: nothing is counted twice and nothing costs between scrapes.

Labels are listener names, type names and fixed reasons: never a peer, never an address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from enclave_proxy.cluster_views import cluster_metrics
from enclave_proxy.counters import RelayCounters
from enclave_proxy.health import Health
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.local_metrics import local_metrics
from enclave_proxy.session import XdsStatus

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
            yield from _control_plane(health.session.status)
        if health.counters is not None:
            yield from _relay(health.counters)
        if health.clusters is not None:
            yield from cluster_metrics(health.clusters)
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


def _control_plane(status: XdsStatus) -> Iterator[Metric]:
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


def _relay(counters: RelayCounters) -> Iterator[Metric]:
    accepted = CounterMetricFamily(f"{_PREFIX}connections_accepted", "Connections accepted", labels=["listener"])
    joined = CounterMetricFamily(f"{_PREFIX}connections_established", "Connections joined", labels=["listener"])
    active = GaugeMetricFamily(f"{_PREFIX}connections_active", "Connections joined now", labels=["listener"])
    pending = GaugeMetricFamily(f"{_PREFIX}handshakes_active", "Connections not joined yet", labels=["listener"])
    payload = CounterMetricFamily(
        f"{_PREFIX}bytes", "Payload, seen from the side that connected to us", labels=["listener", "direction"]
    )
    refused = CounterMetricFamily(
        f"{_PREFIX}connections_refused", "Connections not served", labels=["listener", "reason"]
    )
    ended = CounterMetricFamily(
        f"{_PREFIX}connections_ended", "Joined connections cut off by a change of rules", labels=["listener", "reason"]
    )
    for name, numbers in list(counters.listeners.items()):
        accepted.add_metric([name], numbers.accepted)
        joined.add_metric([name], numbers.established)
        active.add_metric([name], numbers.active)
        pending.add_metric([name], numbers.handshakes)
        payload.add_metric([name, "received"], numbers.received)
        payload.add_metric([name, "sent"], numbers.sent)
        for reason, count in numbers.refused.items():
            refused.add_metric([name, reason.value], count)
        for reason, count in numbers.ended.items():
            ended.add_metric([name, reason.value], count)
    yield from (accepted, joined, active, pending, payload, refused, ended)
    yield _counter("configurations_applied", "Relay configurations that took effect", counters.applied)
    yield _counter("configurations_rejected", "Relay configurations that could not be put in force", counters.rejected)
    yield _counter("connection_bugs", "Connections that ended with an unexpected error", counters.bugs)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, text, value=value)
