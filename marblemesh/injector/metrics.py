# SPDX-License-Identifier: Apache-2.0
"""What the webhook counts."""

from __future__ import annotations

from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from marblemesh.injector.review import Verdict


class InjectorMetrics:
    """On a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reviews = Counter(
            "marblemesh_injector_reviews",
            "Admission requests by verdict: patched, passed, denied or malformed.",
            ["verdict"],
            registry=self.registry,
        )
        for verdict in Verdict:
            self.reviews.labels(verdict.value)
        self.seconds = Histogram(
            "marblemesh_injector_review_seconds",
            "Time to answer an admission request.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
            registry=self.registry,
        )
        self.expiry = Gauge(
            "marblemesh_injector_certificate_expiry_timestamp_seconds",
            "When the certificate that is served ends, as seconds since 1970.",
            registry=self.registry,
        )
        self.certificate_failures = Gauge(
            "marblemesh_injector_certificate_reload_failures",
            "How often changed certificate files were not taken over.",
            registry=self.registry,
        )

    def certificate_loaded(self, expiry: datetime) -> None:
        self.expiry.set(expiry.timestamp())
