# SPDX-License-Identifier: Apache-2.0
"""Metrics of the xDS server. Labels are bounded: types by their short names (all unknown ones are `other`), reasons and
roles from our own lists, never a name that a client chose."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET

_SHORT = {LISTENER: "listener", CLUSTER: "cluster", ENDPOINT: "endpoint", SECRET: "secret"}
# A stock Envoy acknowledges in 1.3 ms (median), 4 ms (99 %); what takes seconds is a client in trouble.
_ACK_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1, 5, 15)
# The shortest is the time to settle, the longest that a phase waits for an answer is 10 s.
_ROTATION_SECONDS = (0.25, 0.5, 1, 2, 5, 10, 20, 60)


def short_type(type_url: str) -> str:
    """`listener`, `cluster`, `endpoint`, `secret` or `other`."""
    return _SHORT.get(type_url, "other")


class XdsMetrics:
    """The collectors, registered in the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.streams = Gauge("marblemesh_xds_streams", "Open discovery streams", ("variant", "role"), registry=registry)
        self.pushes = Counter("marblemesh_xds_pushes", "Responses written", ("type",), registry=registry)
        self.push_bytes = Counter("marblemesh_xds_push_bytes", "Size of what was written", ("type",), registry=registry)
        self.acks = Counter("marblemesh_xds_acks", "Responses that clients took", ("type",), registry=registry)
        self.nacks = Counter("marblemesh_xds_nacks", "Responses that clients rejected", ("type",), registry=registry)
        self.stale = Counter(
            "marblemesh_xds_stale_nonces", "Requests that answered an older response", ("type",), registry=registry
        )
        self.ack_seconds = Histogram(
            "marblemesh_xds_ack_seconds",
            "From writing a response to its ACK",
            ("type",),
            buckets=_ACK_SECONDS,
            registry=registry,
        )
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
        self.denied = Counter("marblemesh_xds_denied", "Streams refused or ended", ("reason",), registry=registry)
        self.failures = Counter("marblemesh_xds_failures", "Streams ended by a fault", ("reason",), registry=registry)
