# SPDX-License-Identifier: Apache-2.0
"""Metrics of the xDS server, in the words that operators know from Istio's control plane. Labels are bounded: types
by their short names (all unknown ones are `other`), reasons and roles from our own lists, never what a client chose.

What can be read off when somebody looks (streams, subscriptions, expiry) is not counted in between: see `Now`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET
from sds.secret_checks import PARTS
from xds_server.tallies import Spreads, Tallies

_SHORT = {
    LISTENER: "listener",
    CLUSTER: "cluster",
    ENDPOINT: "endpoint",
    ROUTE: "route",
    SECRET: "secret",
}
_OTHER = "other"
SHORT_TYPES = (*_SHORT.values(), _OTHER)
_PREFIX = "marblemesh_xds_"

# A stock Envoy acknowledges in 1.3 ms (median), 4 ms (99 %); what takes seconds is a client in trouble.
_ACK_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1, 5, 15)
# 5000 clients take a new bundle within a second; the longest pause that is bridged is that of a lost connection.
_CONVERGENCE_SECONDS = (0.005, 0.02, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
# Between the quiet time and the longest delay.
_DEBOUNCE_SECONDS = (0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1)
# The shortest is the time to settle, the longest that a phase waits for an answer is 10 s.
_ROTATION_SECONDS = (0.25, 0.5, 1, 2, 5, 10, 20, 60)
# Istio's edges: 10 kB, 1 MB, what gRPC takes by default, 10 MB; below them those of single secrets.
_SIZE_BYTES = (500, 2_000, 10_000, 100_000, 1_000_000, 4_000_000, 10_000_000)


def short_type(type_url: str) -> str:
    """`listener`, `cluster`, `endpoint`, `route`, `secret` or `other`."""
    return _SHORT.get(type_url, _OTHER)


class TypeMetrics:
    """The counters of one resource type, looked up once."""

    __slots__ = (
        "ack_seconds",
        "acks",
        "expired_nonces",
        "forbidden",
        "nacks",
        "not_found",
        "push_seconds",
        "pushes",
        "size",
    )

    def __init__(self, metrics: XdsMetrics, label: str) -> None:
        self.pushes = metrics.pushes.labels(label)
        self.push_seconds = metrics.push_seconds.labels(label)
        self.size = metrics.config_size.labels(label)
        self.acks = metrics.acks.labels(label)
        self.nacks = metrics.nacks.labels(label)
        self.expired_nonces = metrics.expired_nonces.labels(label)
        self.ack_seconds = metrics.ack_seconds.labels(label)
        self.not_found = metrics.not_found.labels(label)
        self.forbidden = metrics.forbidden.labels(label)


@dataclass(frozen=True, slots=True)
class Now:
    """How it stands at a scrape: by short type, and the Unix times at which certificates expire."""

    subscriptions: Mapping[str, int] = field(default_factory=dict)
    pending_acks: int = 0
    waiting_streams: int = 0
    expiry: Mapping[str, float] = field(default_factory=dict)
    withheld: Mapping[str, int] = field(default_factory=dict)  # by what is wrong


class XdsMetrics:
    """The collectors, registered in the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._by_type(registry)
        self._times(registry)
        self._rotation(registry)
        self.streams = Gauge(f"{_PREFIX}streams", "Open discovery streams", ("variant", "role"), registry=registry)
        self.denied = Counter(f"{_PREFIX}denied", "Streams refused or ended", ("reason",), registry=registry)
        self.failures = Counter(f"{_PREFIX}failures", "Streams ended by a fault", ("reason",), registry=registry)
        self.aged = Counter(f"{_PREFIX}aged", "Streams ended because of their age", registry=registry)
        self.write_timeouts = Counter(
            f"{_PREFIX}write_timeouts", "Responses that a client did not read in time", registry=registry
        )
        self.ack_timeouts = Counter(
            f"{_PREFIX}ack_timeouts", "Responses that a client did not answer in time", registry=registry
        )
        self._types = {url: TypeMetrics(self, label) for url, label in _SHORT.items()}
        self._other = TypeMetrics(self, _OTHER)

    def of(self, type_url: str) -> TypeMetrics:
        """The counters of a type."""
        return self._types.get(type_url, self._other)

    def read_at_scrape(self, now: Callable[[], Now]) -> Callable[[], None]:
        """Ask `now` at every scrape. Returns how to stop."""
        collector = _NowCollector(now)
        self._registry.register(collector)
        return lambda: self._registry.unregister(collector)

    def _by_type(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Tallies:
            return Tallies(_PREFIX + name, text, "type", registry)

        self.pushes = counter("pushes", "Responses written")
        self.acks = counter("acks", "Responses that clients took")
        self.nacks = counter("nacks", "Responses that clients rejected")
        self.expired_nonces = counter("expired_nonces", "Requests that answered an older response")
        self.not_found = counter("not_found", "Names asked for that do not exist (for the client that asks)")
        self.forbidden = counter("forbidden", "Names asked for of a type that the client may not see")

    def _times(self, registry: CollectorRegistry) -> None:
        def seconds(name: str, text: str, edges: tuple[float, ...]) -> Histogram:
            return Histogram(_PREFIX + name, text, buckets=edges, registry=registry)

        def often(name: str, text: str, edges: tuple[float, ...], label: str | None = "type") -> Spreads:
            return Spreads(_PREFIX + name, text, edges, registry, label)

        self.push_seconds = often("push_seconds", "Making and writing a response", _ACK_SECONDS)
        self.ack_seconds = often("ack_seconds", "From writing a response to its ACK", _ACK_SECONDS)
        self.queue_seconds = often("queue_seconds", "From a change to a client's first response", _ACK_SECONDS, None)
        self.config_size = often("config_size_bytes", "Size of responses", _SIZE_BYTES)
        self.debounce_seconds = seconds("debounce_seconds", "From a change to the push", _DEBOUNCE_SECONDS)
        self.convergence_seconds = seconds(
            "convergence_seconds", "From a change to the last answer of all clients", _CONVERGENCE_SECONDS
        )

    def _rotation(self, registry: CollectorRegistry) -> None:
        self.rotation_phase = Gauge(
            "marblemesh_rotation_phase",
            "Change to another Marble root: 0 none, 1 made known, 2 identities renewed, 3 old root taken away",
            registry=registry,
        )
        self.rotation_seconds = Histogram(
            "marblemesh_rotation_seconds",
            "How long a phase of a change to another Marble root took",
            ("phase",),
            buckets=_ROTATION_SECONDS,
            registry=registry,
        )
        self.rotation_behind = Counter(
            "marblemesh_rotation_behind", "Phases that went on without somebody's answer", registry=registry
        )


class _NowCollector(Collector):
    def __init__(self, now: Callable[[], Now]) -> None:
        self._now = now

    def describe(self) -> Iterator[Metric]:
        """Names only: registering must not read anything."""
        yield from self._families(Now())

    def collect(self) -> Iterator[Metric]:
        yield from self._families(self._now())

    def _families(self, now: Now) -> Iterator[Metric]:
        names = GaugeMetricFamily(f"{_PREFIX}subscriptions", "Names and wildcards that are asked for", labels=["type"])
        for label in SHORT_TYPES:
            names.add_metric([label], now.subscriptions.get(label, 0))
        yield names
        yield GaugeMetricFamily(f"{_PREFIX}pending_acks", "Responses not answered yet", value=now.pending_acks)
        yield GaugeMetricFamily(
            f"{_PREFIX}waiting_streams", "New streams that wait for admission", value=now.waiting_streams
        )
        expiry = GaugeMetricFamily(
            f"{_PREFIX}certificate_expiry_timestamp_seconds",
            "When it expires, as Unix time; of identities the earliest",
            labels=["certificate"],
        )
        for name, at in now.expiry.items():
            expiry.add_metric([name], at)
        yield expiry
        withheld = GaugeMetricFamily(
            f"{_PREFIX}secrets_withheld", "Secrets not fit to be published, by what is wrong", labels=["part"]
        )
        for part in PARTS:
            withheld.add_metric([part], now.withheld.get(part, 0))
        yield withheld
