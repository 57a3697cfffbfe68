# SPDX-License-Identifier: Apache-2.0
"""The peers' endpoints for Prometheus and for people: numbers by route there, each endpoint by its address here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from enclave_proxy.clusters import Clusters, ClusterStatus
from enclave_proxy.endpoints import EndpointStatus

_PREFIX = "marblemesh_worker_"


def cluster_metrics(clusters: Clusters) -> Iterator[Metric]:
    """All families; labels are names of listeners, never an address."""
    endpoints = GaugeMetricFamily(f"{_PREFIX}endpoints", "Endpoints of the peer", labels=["listener"])
    ejected = GaugeMetricFamily(f"{_PREFIX}endpoints_ejected", "Left out now for failing", labels=["listener"])
    for status in clusters.status():
        endpoints.add_metric([status.name], len(status.endpoints))
        ejected.add_metric([status.name], status.ejected)
    attempts = CounterMetricFamily(f"{_PREFIX}dial_attempts", "Connects to peers begun", labels=["listener"])
    retries = CounterMetricFamily(
        f"{_PREFIX}dial_retries", "Those after another one for the same connection of the app", labels=["listener"]
    )
    failures = CounterMetricFamily(
        f"{_PREFIX}dial_failures", "Those that ended in no admitted peer", labels=["listener"]
    )
    ejections = CounterMetricFamily(
        f"{_PREFIX}endpoint_ejections", "Times an endpoint was put out", labels=["listener"]
    )
    for name, numbers in list(clusters.counters.items()):
        attempts.add_metric([name], numbers.attempts)
        retries.add_metric([name], numbers.retries)
        failures.add_metric([name], numbers.failures)
        ejections.add_metric([name], numbers.ejections)
    yield from (endpoints, ejected, attempts, retries, failures, ejections)
    names = clusters.resolver.counters
    yield CounterMetricFamily(f"{_PREFIX}name_lookups", "Names asked for", value=names.lookups)
    yield CounterMetricFamily(f"{_PREFIX}name_lookup_failures", "Those that gave no address", value=names.failures)
    yield CounterMetricFamily(f"{_PREFIX}name_stale_answers", "Times an old answer was used", value=names.stale)


def cluster_dump(clusters: Clusters) -> list[dict[str, object]]:
    """Each outbound route that has been dialled, with its endpoints."""
    return [_cluster(status) for status in clusters.status()]


def _cluster(status: ClusterStatus) -> dict[str, object]:
    return {
        "name": status.name,
        "resolved_from": status.resolved_from or None,
        "ejected": status.ejected,
        **asdict(status.counters),
        "endpoints": [_endpoint(endpoint) for endpoint in status.endpoints],
    }


def _endpoint(endpoint: EndpointStatus) -> dict[str, object]:
    return {
        "address": str(endpoint.address),
        "in_flight": endpoint.in_flight,
        "failures_in_a_row": endpoint.failures,
        "ejected_for_seconds": round(endpoint.ejected_for, 1),
    }
