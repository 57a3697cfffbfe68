# SPDX-License-Identifier: Apache-2.0
"""The local sockets' numbers as Prometheus metrics. Labels are names of ours: socket, method, status, reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from enclave_proxy.local_counters import LocalCounters

_PREFIX = "marblemesh_worker_local_"


def local_metrics(sockets: Iterable[LocalCounters]) -> Iterator[Metric]:
    """All families, one sample for each socket, or for each socket and method."""
    accepted = CounterMetricFamily(f"{_PREFIX}connections_accepted", "Local clients let in", labels=["socket"])
    active = GaugeMetricFamily(f"{_PREFIX}connections_active", "Local clients connected now", labels=["socket"])
    refused = CounterMetricFamily(
        f"{_PREFIX}connections_refused", "Local clients not served, or cut off", labels=["socket", "reason"]
    )
    streams = GaugeMetricFamily(f"{_PREFIX}calls_active", "Calls open now", labels=["socket", "method"])
    ended = CounterMetricFamily(f"{_PREFIX}calls_ended", "Calls that have ended", labels=["socket", "method", "status"])
    sent = CounterMetricFamily(
        f"{_PREFIX}messages_sent", "Identities, bundles and secrets given to clients", labels=["socket", "method"]
    )
    missing = CounterMetricFamily(f"{_PREFIX}names_not_found", "Secrets asked for that do not exist", labels=["socket"])
    nacks = CounterMetricFamily(f"{_PREFIX}nacks", "Secrets that a local Envoy rejected", labels=["socket"])
    for numbers in sockets:
        accepted.add_metric([numbers.socket], numbers.accepted)
        active.add_metric([numbers.socket], numbers.active)
        missing.add_metric([numbers.socket], numbers.missing)
        nacks.add_metric([numbers.socket], numbers.nacks)
        for reason, count in numbers.refused.items():
            refused.add_metric([numbers.socket, reason.value], count)
        for method, count in numbers.streams.items():
            streams.add_metric([numbers.socket, method], count)
        for (method, status), count in numbers.ended.items():
            ended.add_metric([numbers.socket, method, status], count)
        for method, count in numbers.sent.items():
            sent.add_metric([numbers.socket, method], count)
    yield from (accepted, active, refused, streams, ended, sent, missing, nacks)
