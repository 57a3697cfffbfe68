# SPDX-License-Identifier: Apache-2.0
"""The peers' endpoints for people, each by its address; for Prometheus see `relay_metrics`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from enclave_proxy.clusters import ClusterStatus
from enclave_proxy.counter_sum import added
from enclave_proxy.endpoints import EndpointStatus
from enclave_proxy.relay_config import TcpAddress


def cluster_dump(statuses: Iterable[ClusterStatus]) -> list[dict[str, object]]:
    """Each outbound route that has been dialled, with its endpoints."""
    return [_cluster(status) for status in statuses]


def joint_status(processes: Sequence[Iterable[ClusterStatus]]) -> tuple[ClusterStatus, ...]:
    """What several processes know, as one: loads and counters are added, and of failures the worst is told, because
    some of the connections fare like that."""
    joint: dict[str, ClusterStatus] = {}
    for statuses in processes:
        for status in statuses:
            known = joint.get(status.name)
            joint[status.name] = status if known is None else _both(known, status)
    return tuple(joint[name] for name in sorted(joint))


def _both(one: ClusterStatus, other: ClusterStatus) -> ClusterStatus:
    endpoints: dict[TcpAddress, EndpointStatus] = {endpoint.address: endpoint for endpoint in one.endpoints}
    for endpoint in other.endpoints:
        known = endpoints.get(endpoint.address)
        endpoints[endpoint.address] = endpoint if known is None else _worse(known, endpoint)
    return ClusterStatus(
        name=one.name,
        resolved_from=one.resolved_from or other.resolved_from,
        endpoints=tuple(endpoints.values()),
        ejected=sum(endpoint.ejected_for > 0 for endpoint in endpoints.values()),
        counters=added(one.counters, other.counters),
    )


def _worse(one: EndpointStatus, other: EndpointStatus) -> EndpointStatus:
    return EndpointStatus(
        address=one.address,
        in_flight=one.in_flight + other.in_flight,
        failures=max(one.failures, other.failures),
        ejected_for=max(one.ejected_for, other.ejected_for),
    )


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
