# SPDX-License-Identifier: Apache-2.0
"""Metrics under MarbleRun's names with bounded labels, and the listener that shows them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

import aiohttp
from grpclib.const import Status
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from xds_server.events import ActivationEvent, EventLog
from xds_server.metrics import GRPC_CODES, MAX_UUIDS, OTHER_UUID, CoordinatorMetrics
from xds_server.metrics_listener import MAX_CONNECTIONS, MetricsListener

NAMES = [
    "coordinator_version_info",
    "coordinator_state",
    "coordinator_marble_activations_total",
    "coordinator_marble_activations_success_total",
    "server_client_api_http_request_total",
    "server_client_api_http_request_duration_histogram_seconds_bucket",
    "server_client_api_http_request_size_histogram_bytes_bucket",
    "server_client_api_http_response_size_histogram_bytes_bucket",
    "server_client_api_http_in_flight_requests",
    "grpc_server_started_total",
    "grpc_server_msg_received_total",
    "grpc_server_msg_sent_total",
    "grpc_server_handled_total",
    "promhttp_metric_handler_requests_total",
    "promhttp_metric_handler_requests_in_flight",
    "promhttp_metric_handler_errors_total",
    "marblemesh_attestation_refused_total",
    "marblemesh_activation_duration_seconds_bucket",
    "marblemesh_attestation_verification_seconds_bucket",
]


def test_the_names_are_those_that_dashboards_know() -> None:
    metrics = CoordinatorMetrics("1.0", "abc")
    metrics.activations.labels("t", "u").inc()
    metrics.activated("t", "u")
    metrics.refused.labels("no_quote").inc()
    for http in (metrics.http_seconds.labels("p", "get"), metrics.http_request_bytes.labels("p")):
        http.observe(1)
    metrics.http_response_bytes.labels("p").observe(1)
    metrics.http_requests.labels("p", "200", "get").inc()
    metrics.http_in_flight.labels("p").set(0)
    shown = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert set(NAMES) <= shown


def test_uuids_do_not_fill_the_registry() -> None:
    metrics = CoordinatorMetrics("1.0")
    for number in range(MAX_UUIDS + 10):
        metrics.activated("t", str(number))
    labels = {s.labels["uuid"] for f in metrics.activations_success.collect() for s in f.samples if "uuid" in s.labels}
    assert len(labels) == MAX_UUIDS + 1
    assert OTHER_UUID in labels
    assert metrics.uuid_label("never seen") == OTHER_UUID


def test_the_event_log_is_a_ring_and_null_when_empty() -> None:
    events = EventLog(limit=2)
    assert events.to_json() is None
    for number in range(3):
        events.add(ActivationEvent(datetime(2026, 1, 1, tzinfo=UTC), "t", str(number), b""))
    assert events.to_json() == [
        {"time": "2026-01-01T00:00:00Z", "activation": {"marbleType": "t", "uuid": str(n), "quote": None}}
        for n in (1, 2)
    ]


async def test_the_listener_shows_metrics_and_events_and_nothing_else() -> None:
    events = EventLog()
    listener = MetricsListener(CoordinatorMetrics("1.0"), events)
    bound = socket.create_server(("127.0.0.1", 0))
    base = f"http://127.0.0.1:{bound.getsockname()[1]}"
    await listener.start(bound)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{base}/metrics") as reply:
            assert 'coordinator_version_info{commit="",version="1.0"} 0.0' in await reply.text()
        async with session.get(f"{base}/events") as reply:
            assert await reply.text() == "null\n"
        events.add(ActivationEvent(datetime.now(UTC), "t", "u", b"q"))
        async with session.get(f"{base}/events") as reply:
            assert json.loads(await reply.text())[0]["activation"] == {"marbleType": "t", "uuid": "u", "quote": "cQ=="}
        async with session.get(f"{base}/other") as reply:
            assert reply.status == 404
        async with session.post(f"{base}/metrics") as reply:
            assert reply.status == 405
    await listener.stop()


async def test_one_machine_cannot_hold_every_connection() -> None:
    listener = MetricsListener(CoordinatorMetrics("1.0"), EventLog())
    bound = socket.create_server(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    await listener.start(bound)
    held = [
        await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0)) for _ in range(MAX_CONNECTIONS)
    ]
    async with asyncio.timeout(10), aiohttp.ClientSession() as session:
        for reader, _ in held[MAX_CONNECTIONS // 2 :]:
            with suppress(ConnectionError):
                assert await reader.read() == b""
        async with session.get(f"http://127.0.0.1:{port}/metrics") as reply:
            assert reply.status == 200
        held[0][1].write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await held[0][0].readline()).startswith(b"HTTP/1.1 200")
    for _, writer in held:
        writer.close()
    await listener.stop()


class Broken(Collector):
    """A metric that cannot be shown; also while it is registered, which asks for names."""

    def collect(self) -> Iterable[Metric]:
        raise ValueError

    def describe(self) -> Iterable[Metric]:
        return []


async def test_a_scrape_that_fails_is_a_500_and_counted() -> None:
    metrics = CoordinatorMetrics("1.0")
    metrics.registry.register(Broken())
    listener = MetricsListener(metrics, EventLog())
    bound = socket.create_server(("127.0.0.1", 0))
    await listener.start(bound)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        assert reply.status == 500
    await listener.stop()
    assert metrics.scrape_errors.labels("gathering")._value.get() == 1
    assert metrics.scrapes.labels("500")._value.get() == 1


def test_codes_are_spelled_as_in_go() -> None:
    assert GRPC_CODES[Status.PERMISSION_DENIED] == "PermissionDenied"
    assert GRPC_CODES[Status.CANCELLED] == "Canceled"
    assert GRPC_CODES[Status.OK] == "OK"
    metrics = CoordinatorMetrics("1.0")
    shown = {s.labels["grpc_code"] for f in metrics._grpc_handled.collect() for s in f.samples}
    assert shown == set(GRPC_CODES.values())
