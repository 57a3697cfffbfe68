# SPDX-License-Identifier: Apache-2.0
"""The Coordinator's metrics: MarbleRun's names where it has them, `marblemesh_*` for the rest; a registry of its own.

Labels are bounded, since strangers choose what they send: `type` is a type of the manifest or "unknown"; `uuid` is the
UUID of an instance that has been activated before, for the first 1000 of them, else "other"; `path` is a route or
"unknown". So no stream of forged activations can fill the memory of the Coordinator or of Prometheus.
"""

from __future__ import annotations

from grpclib.const import Status
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

MAX_UUIDS = 1000
OTHER_UUID = "other"
UNKNOWN_TYPE = "unknown"

# Go's spelling of the codes, which is what dashboards for MarbleRun filter by.
GRPC_CODES = {status: "".join(word.capitalize() for word in status.name.split("_")) for status in Status} | {
    Status.OK: "OK",
    Status.CANCELLED: "Canceled",
}

_SECONDS = (0.005, 0.025, 0.1, 0.5, 1, 2.5, 5)
_BYTES = (100, 1000, 2000, 5000, 10000)
# Verification takes 0.6 ms of CPU when the collateral is at hand, and a PCCS round trip when it is not.
_VERIFY_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1, 5, 15)
_ACTIVATE_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 15)


class CoordinatorMetrics:
    """One instance per process; `registry` is what the metrics listener shows."""

    def __init__(self, version: str, commit: str = "") -> None:
        self.registry = CollectorRegistry()
        self._uuids: set[str] = set()
        self._core(version, commit)
        self._http()
        self._grpc()
        self._scrape()

    def uuid_label(self, uuid: str) -> str:
        """The label for an attempt: the UUID itself only if it was activated before."""
        return uuid if uuid in self._uuids else OTHER_UUID

    def activated(self, marble_type: str, uuid: str) -> None:
        """Count a successful activation of a normalised UUID."""
        if len(self._uuids) < MAX_UUIDS:
            self._uuids.add(uuid)
        self.activations_success.labels(marble_type, self.uuid_label(uuid)).inc()

    def _core(self, version: str, commit: str) -> None:
        registry = self.registry
        info = Gauge("coordinator_version_info", "Version", ("version", "commit"), registry=registry)
        info.labels(version, commit).set(0)
        self.state = Gauge("coordinator_state", "State of the Coordinator (1 to 3, 0 on error)", registry=registry)
        self.simulation = Gauge("marblemesh_simulation", "1 if attestation is simulated", registry=registry)
        labels = ("type", "uuid")
        self.activations = Counter("coordinator_marble_activations", "Activation attempts", labels, registry=registry)
        self.activations_success = Counter(
            "coordinator_marble_activations_success", "Successful activations", labels, registry=registry
        )
        self.refused = Counter(
            "marblemesh_attestation_refused",
            "Refused activations by the check that failed",
            ("reason",),
            registry=registry,
        )
        self.activation_seconds = Histogram(
            "marblemesh_activation_duration_seconds", "One activation", buckets=_ACTIVATE_SECONDS, registry=registry
        )
        self.verification_seconds = Histogram(
            "marblemesh_attestation_verification_seconds",
            "Verification of one quote, collateral included",
            buckets=_VERIFY_SECONDS,
            registry=registry,
        )
        self.tls_refused = Counter(
            "marblemesh_tls_refused", "Connections that ended before a request", ("port",), registry=registry
        )
        self.renewals = Counter("marblemesh_identity_renewals", "Renewed mesh identities", registry=registry)

    def _http(self) -> None:
        prefix = "server_client_api_http"
        registry = self.registry
        self.http_requests = Counter(f"{prefix}_request", "Requests", ("path", "code", "method"), registry=registry)
        self.http_seconds = Histogram(
            f"{prefix}_request_duration_histogram_seconds",
            "Time to answer",
            ("path", "method"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.http_request_bytes = Histogram(
            f"{prefix}_request_size_histogram_bytes", "Request bodies", ("path",), buckets=_BYTES, registry=registry
        )
        self.http_response_bytes = Histogram(
            f"{prefix}_response_size_histogram_bytes", "Response bodies", ("path",), buckets=_BYTES, registry=registry
        )
        self.http_in_flight = Gauge(f"{prefix}_in_flight_requests", "Requests in flight", ("path",), registry=registry)

    def _grpc(self) -> None:
        labels = ("grpc_type", "grpc_service", "grpc_method")
        method = ("unary", "rpc.Marble", "Activate")
        registry = self.registry
        self.grpc_started = Counter("grpc_server_started", "RPCs started", labels, registry=registry).labels(*method)
        self.grpc_received = Counter("grpc_server_msg_received", "Messages received", labels, registry=registry).labels(
            *method
        )
        self.grpc_sent = Counter("grpc_server_msg_sent", "Messages sent", labels, registry=registry).labels(*method)
        handled = Counter("grpc_server_handled", "RPCs completed", (*labels, "grpc_code"), registry=registry)
        self._grpc_handled = handled
        for code in GRPC_CODES.values():
            handled.labels(*method, code)

    def grpc_handled(self, status: Status) -> None:
        """Count a finished Activate."""
        self._grpc_handled.labels("unary", "rpc.Marble", "Activate", GRPC_CODES[status]).inc()

    def _scrape(self) -> None:
        prefix = "promhttp_metric_handler"
        registry = self.registry
        self.scrapes = Counter(f"{prefix}_requests", "Scrapes by code", ("code",), registry=registry)
        for code in ("200", "500", "503"):
            self.scrapes.labels(code)
        self.scrape_errors = Counter(f"{prefix}_errors", "Scrapes that failed", ("cause",), registry=registry)
        for cause in ("encoding", "gathering"):
            self.scrape_errors.labels(cause)
        self.scrapes_in_flight = Gauge(f"{prefix}_requests_in_flight", "Scrapes being served", registry=registry)
