# SPDX-License-Identifier: Apache-2.0
"""The worker's admin port: a named container port, the kubelet's probes, and where Prometheus finds the numbers."""

from __future__ import annotations

from typing import Any

from marblemesh.inject.context import PodContext
from marblemesh.inject.errors import Refused
from marblemesh.inject.names import ADMIN_PORT
from marblemesh.inject.report import Level
from marblemesh.inject.settings import AdminAddress, parse_admin

VARIABLE = "EDG_MARBLE_ADMIN_ADDR"
_PROBES = {
    "readinessProbe": {"path": "/readyz", "periodSeconds": 5},
    "livenessProbe": {"path": "/livez", "periodSeconds": 20},
}


def admin_addresses(context: PodContext, first: AdminAddress) -> dict[str, AdminAddress]:
    """Where the worker of each Marble container has its admin port: where the container says so itself, or else on a
    port of its own, counted up from `first`, since containers of a pod share its addresses. A container that has closed
    it, or says it in a way that cannot be read here, is not among them.

    Raises Refused if a port is another container's, or the app's.
    """
    if first.port + len(context.containers) - 1 > 65535:
        raise Refused(f"there are not enough ports from {first.port} on for {len(context.containers)} containers")
    found: dict[str, AdminAddress] = {}
    for number, container in enumerate(context.containers):
        present = context.draft.get("spec", "containers", container, "env", VARIABLE)
        if present is None:
            found[container] = AdminAddress(first.host, first.port + number)
            _refuse_taken(context, container, found[container].port)
        elif (address := _own(present)) is not None:
            found[container] = address
        else:
            context.note(Level.LEFT, f"probes of container {container}: it says itself what {VARIABLE} is")
    if len({address.port for address in found.values()}) < len(found):
        raise Refused(f"spec.containers: two have the same port in {VARIABLE}")
    return found


def _own(variable: dict[str, Any]) -> AdminAddress | None:
    value = variable.get("value")
    try:
        return parse_admin(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _refuse_taken(context: PodContext, owner: str, wanted: int) -> None:
    for container in context.draft.items("spec", "containers"):
        name = str(container.get("name"))
        for port in context.draft.items("spec", "containers", name, "ports"):
            if port.get("containerPort") == wanted and not (name == owner and port.get("name") == ADMIN_PORT):
                raise Refused(
                    f"spec.containers.{name}.ports: {wanted} is the app's, and would be the worker's admin port too: "
                    f"give another one with --admin-addr"
                )


def add_admin_port(context: PodContext, addresses: dict[str, AdminAddress]) -> None:
    """Port and probes of each container, and one Prometheus annotation for the first; what is there is left."""
    for container, address in addresses.items():
        base = ("spec", "containers", container)
        present = context.draft.items(*base, "ports")
        if not any(port.get("containerPort") == address.port for port in present):
            port = {"name": ADMIN_PORT, "containerPort": address.port, "protocol": "TCP"}
            context.draft.append((*base, "ports"), port)
        for probe, terms in _PROBES.items():
            check = {
                "httpGet": {"path": terms["path"], "port": address.port, "scheme": "HTTP"},
                "periodSeconds": terms["periodSeconds"],
                "timeoutSeconds": 3,
            }
            if not context.draft.put(base, probe, check) and not _asks_worker(context, container, probe, address.port):
                context.note(
                    Level.LEFT, f"{probe} of container {container}: it has one; on a port with mTLS it would fail"
                )
    _add_prometheus(context, next(iter(addresses.values())))


def _asks_worker(context: PodContext, container: str, probe: str, number: int) -> bool:
    """Does a probe that is there go to the admin port, by its number or its name?"""
    base = ("spec", "containers", container)
    asked = context.draft.get(*base, probe, "httpGet", "port")
    ports = context.draft.items(*base, "ports")
    return asked == number or any(
        port.get("containerPort") == number and port.get("name") == asked is not None for port in ports
    )


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
