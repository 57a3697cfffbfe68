# SPDX-License-Identifier: Apache-2.0
"""The worker's admin port: a named container port, the kubelet's probes, and where Prometheus finds the numbers."""

from __future__ import annotations

from marblemesh.inject.context import PodContext
from marblemesh.inject.errors import Refused
from marblemesh.inject.names import ADMIN_PORT
from marblemesh.inject.report import Level
from marblemesh.inject.settings import AdminAddress

_PROBES = {
    "readinessProbe": {"path": "/readyz", "periodSeconds": 5},
    "livenessProbe": {"path": "/livez", "periodSeconds": 20},
}


def admin_addresses(context: PodContext, first: AdminAddress) -> dict[str, AdminAddress]:
    """One port for each Marble container, counted up from `first`: containers of a pod share its addresses.

    Raises Refused if one of them is another container's.
    """
    if first.port + len(context.containers) - 1 > 65535:
        raise Refused(f"there are not enough ports from {first.port} on for {len(context.containers)} containers")
    wanted = {
        container: AdminAddress(first.host, first.port + number) for number, container in enumerate(context.containers)
    }
    taken = {address.port: container for container, address in wanted.items()}
    for container in context.draft.items("spec", "containers"):
        name = str(container.get("name"))
        for port in context.draft.items("spec", "containers", name, "ports"):
            number = port.get("containerPort")
            owner = taken.get(number) if isinstance(number, int) else None
            if owner is not None and not (owner == name and port.get("name") == ADMIN_PORT):
                raise Refused(
                    f"spec.containers.{name}.ports: {number} is the app's, and would be the worker's admin port too: "
                    f"give another one with --admin-addr"
                )
    return wanted


def add_admin_port(context: PodContext, addresses: dict[str, AdminAddress]) -> None:
    """Port and probes of each container, and one Prometheus annotation for the first; what is there is left."""
    for container, address in addresses.items():
        base = ("spec", "containers", container)
        port = {"name": ADMIN_PORT, "containerPort": address.port, "protocol": "TCP"}
        context.draft.append((*base, "ports"), port)
        for probe, terms in _PROBES.items():
            check = {
                "httpGet": {"path": terms["path"], "port": address.port, "scheme": "HTTP"},
                "periodSeconds": terms["periodSeconds"],
                "timeoutSeconds": 3,
            }
            if not context.draft.put(base, probe, check) and context.draft.get(*base, probe) != check:
                context.note(
                    Level.LEFT, f"{probe} of container {container}: it has one; on a port with mTLS it would fail"
                )
    _add_prometheus(context, next(iter(addresses.values())))


def _add_prometheus(context: PodContext, address: AdminAddress) -> None:
    wanted = {"scrape": "true", "port": str(address.port), "path": "/metrics"}
    path = ("metadata", "annotations")
    present = {name for name in wanted if context.draft.get(*path, f"prometheus.io/{name}") is not None}
    if present:
        if context.draft.get(*path, "prometheus.io/port") != wanted["port"]:
            context.note(
                Level.LEFT, f"prometheus.io annotations: there are some; the worker's numbers are at {address}/metrics"
            )
        return
    for name, value in wanted.items():
        context.draft.put(path, f"prometheus.io/{name}", value)
