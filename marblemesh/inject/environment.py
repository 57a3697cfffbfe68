# SPDX-License-Identifier: Apache-2.0
"""Variables of a Marble. A variable that the container has already is left as it is."""

from __future__ import annotations

from typing import Any

from marblemesh.inject.context import PodContext
from marblemesh.inject.names import PLATFORM_DIR, RUN_PATH, UUID_VOLUME
from marblemesh.inject.report import Level
from marblemesh.inject.settings import AdminAddress, Advertise

_NAMESPACE = "MARBLE_NAMESPACE"
_POD_IP = "MARBLE_POD_IP"


def add_environment(context: PodContext, container: str) -> None:
    """MarbleRun's four variables, and what they are made of where only the pod itself knows it."""
    settings = context.settings
    names = _dns_names(context)
    _set(context, container, "EDG_MARBLE_COORDINATOR_ADDR", settings.coordinator)
    _set(context, container, "EDG_MARBLE_TYPE", context.marble_type)
    if not _has(context, container, "EDG_MARBLE_DNS_NAMES"):
        for part, field in ((_NAMESPACE, "metadata.namespace"), (_POD_IP, "status.podIP")):
            if any(f"$({part})" in name for name in names):
                _append(context, container, {"name": part, "valueFrom": {"fieldRef": {"fieldPath": field}}})
    _set(context, container, "EDG_MARBLE_DNS_NAMES", ",".join(names))
    _set(context, container, "EDG_MARBLE_UUID_FILE", f"{uuid_path(context)}/{UUID_VOLUME}")


def add_worker_environment(context: PodContext, container: str, admin: AdminAddress | None) -> None:
    """What our worker needs beyond that: places that it can write to, and an admin port that kubelets reach."""
    _set(context, container, "EDG_MARBLE_RUN_DIR", f"{RUN_PATH}/{container}")
    # Beside the UUID file, where it would be by default, nothing can be written.
    _set(context, container, "EDG_MARBLE_OFFLINE_STATE", f"{RUN_PATH}/{container}.offline")
    if admin is not None:
        _set(context, container, "EDG_MARBLE_ADMIN_ADDR", str(admin))
    if context.settings.simulation:
        _set(context, container, "EDG_MARBLE_SIMULATION", "on")
        _set(context, container, "EDG_SIMULATED_PLATFORM_DIR", PLATFORM_DIR)
    if context.settings.advertise is Advertise.POD_IP:
        _set(context, container, "EDG_MARBLE_ADVERTISE", f"$({_POD_IP})")


def uuid_path(context: PodContext) -> str:
    """Where the volume with the pod's UID is mounted."""
    return f"/{context.marble_type}-uid"


def _dns_names(context: PodContext) -> list[str]:
    """`type,type.ns,type.ns.svc.cluster.local` in lower case, as MarbleRun's injector has them."""
    settings, marble = context.settings, context.marble_type.lower()
    namespace = f"$({_NAMESPACE})" if context.namespace is None else context.namespace.lower()
    names = [marble, f"{marble}.{namespace}", f"{marble}.{namespace}.svc.{settings.cluster_domain.lower()}"]
    if settings.worker and settings.advertise is Advertise.POD_IP:
        names.append(f"$({_POD_IP})")
    return names


def _has(context: PodContext, container: str, name: str) -> bool:
    return context.draft.get("spec", "containers", container, "env", name) is not None


def _append(context: PodContext, container: str, variable: dict[str, Any]) -> bool:
    return context.draft.append(("spec", "containers", container, "env"), variable)


def _set(context: PodContext, container: str, name: str, value: str) -> None:
    if _append(context, container, {"name": name, "value": value}):
        return
    present = context.draft.get("spec", "containers", container, "env", name)
    if present.get("value") != value:
        level = Level.WARNING if name == "EDG_MARBLE_TYPE" else Level.LEFT
        context.note(level, f"variable {name} of container {container} is set already, to another value than {value}")
