# SPDX-License-Identifier: Apache-2.0
"""The relay's numbers as Prometheus metrics, those of all its processes together.

Labels are names of listeners, Marble types of peers (a bounded number, see `peer_types`), numbers of processes and
fixed reasons: never an instance, never an address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from enclave_proxy.counters import ListenerCounters, Refusal, RelayCounters

_PREFIX = "marblemesh_worker_"


def relay_metrics(counters: RelayCounters) -> Iterator[Metric]:
    """All families."""
    yield from _listeners(counters)
    yield _handshakes(counters)
    yield from _dials(counters)
    cpu = CounterMetricFamily(
        f"{_PREFIX}relay_cpu_seconds", "CPU time of a relay process's event loop", labels=["process"]
    )
    for process, seconds in counters.cpu.items():
        cpu.add_metric([process], seconds)
    yield cpu
    yield _counter("configurations_applied", "Relay configurations that took effect", counters.applied)
    yield _counter("configurations_rejected", "Relay configurations that could not be put in force", counters.rejected)
    yield _counter("connection_bugs", "Connections that ended with an unexpected error", counters.bugs)
    yield _counter("log_lines_suppressed", "Refusals counted, but not logged", counters.suppressed_logs)
    yield _counter("access_log_lines", "Lines of the access log", counters.access_written)
    yield _counter("access_log_lines_dropped", "Those that were dropped instead", counters.access_lost)


def _listeners(counters: RelayCounters) -> Iterator[Metric]:
    numbers = list(counters.listeners.items())
    singles: tuple[tuple[type[CounterMetricFamily | GaugeMetricFamily], str, str, Callable[..., int]], ...] = (
        (CounterMetricFamily, "connections_accepted", "Connections accepted", lambda n: n.accepted),
        (CounterMetricFamily, "connections_established", "Connections joined", lambda n: n.established),
        (GaugeMetricFamily, "connections_active", "Connections joined now", lambda n: n.active),
        (GaugeMetricFamily, "handshakes_active", "Connections not joined yet", lambda n: n.handshakes),
    )
    for kind, name, text, read in singles:
        single = kind(_PREFIX + name, text, labels=["listener"])
        for listener, number in numbers:
            single.add_metric([listener], read(number))
        yield single
    payload = CounterMetricFamily(
        f"{_PREFIX}bytes", "Payload, seen from the side that connected to us", labels=["listener", "direction"]
    )
    for listener, number in numbers:
        payload.add_metric([listener, "received"], number.received)
        payload.add_metric([listener, "sent"], number.sent)
    yield payload
    families: tuple[tuple[str, str, str, Callable[[ListenerCounters], dict[str, int]]], ...] = (
        ("connections_refused", "Connections not served", "reason", lambda n: _words(n.refused)),
        ("connections_ended", "Joined connections cut off or broken off", "reason", lambda n: _words(n.ended)),
        ("handshake_failures", "TLS handshakes that admitted nobody", "reason", lambda n: _words(n.handshakes_failed)),
        ("peer_connections", "Joined connections by the peer's Marble type", "peer", lambda n: n.peers),
    )
    for name, text, label, counts in families:
        family = CounterMetricFamily(_PREFIX + name, text, labels=["listener", label])
        for listener, number in numbers:
            for value, count in counts(number).items():
                family.add_metric([listener, value], count)
        yield family


def _words(counts: dict[Refusal, int]) -> dict[str, int]:
    return {reason.value: count for reason, count in counts.items()}


def _handshakes(counters: RelayCounters) -> Metric:
    family = HistogramMetricFamily(
        f"{_PREFIX}handshake_duration_seconds", "TLS handshakes after which the peer was admitted", labels=["listener"]
    )
    for listener, number in list(counters.listeners.items()):
        family.add_metric([listener], number.handshake_times.buckets(), number.handshake_times.seconds)
    return family


def _dials(counters: RelayCounters) -> Iterator[Metric]:
    for name, text, now in (
        ("endpoints", "Endpoints of the peer", counters.endpoints),
        ("endpoints_ejected", "Left out now for failing; of the process that leaves out most", counters.ejected),
    ):
        gauge = GaugeMetricFamily(_PREFIX + name, text, labels=["listener"])
        for listener, count in now.items():
            gauge.add_metric([listener], count)
        yield gauge
    for name, text in (
        ("dial_attempts", "Connects to peers begun"),
        ("dial_retries", "Those after another one for the same connection of the app"),
        ("dial_failures", "Those that ended in no admitted peer"),
        ("endpoint_ejections", "Times an endpoint was put out"),
    ):
        family = CounterMetricFamily(_PREFIX + name, text, labels=["listener"])
        for listener, dials in list(counters.dials.items()):
            family.add_metric([listener], getattr(dials, name.rpartition("_")[2]))
        yield family
    yield _counter("name_lookups", "Names asked for", counters.names.lookups)
    yield _counter("name_lookup_failures", "Those that gave no address", counters.names.failures)
    yield _counter("name_stale_answers", "Times an old answer was used", counters.names.stale)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, text, value=value)
