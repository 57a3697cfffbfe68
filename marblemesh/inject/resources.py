# SPDX-License-Identifier: Apache-2.0
"""SGX: the enclave page cache and devices that a container asks its node for, and leave to run on SGX nodes."""

from __future__ import annotations

from marblemesh.inject.context import PodContext
from marblemesh.inject.draft import Draft
from marblemesh.inject.names import DISABLED, RESOURCE_INJECTION
from marblemesh.inject.report import Level
from marblemesh.inject.sgx import SgxResources


def add_resources(context: PodContext) -> None:
    """Limits of each Marble container and the pod's toleration, unless the pod's label says that it has its own."""
    sgx = context.settings.sgx
    if sgx is None:
        return
    if context.draft.get("metadata", "labels", RESOURCE_INJECTION) == DISABLED:
        context.note(Level.LEFT, f"SGX resources, by the label {RESOURCE_INJECTION}={DISABLED}")
        return
    for container in context.containers:
        _add_limits(context, sgx, container)
    if not _is_tolerated(context.draft, sgx.toleration):
        toleration = {"key": sgx.toleration, "operator": "Exists", "effect": "NoSchedule"}
        if not context.draft.append(("spec", "tolerations"), toleration):
            context.note(Level.LEFT, f"a toleration of {sgx.toleration} with other terms is there")


def _add_limits(context: PodContext, sgx: SgxResources, container: str) -> None:
    resources = ("spec", "containers", container, "resources")
    for key, quantity in sgx.limits.items():
        # An extended resource's request and limit have to be equal.
        requested = context.draft.get(*resources, "requests", key)
        value = quantity if requested is None else requested
        context.draft.put((*resources, "limits"), key, value)


def _is_tolerated(draft: Draft, key: str) -> bool:
    return any(
        toleration.get("operator") == "Exists"
        and toleration.get("key") in (key, None, "")
        and toleration.get("effect") in ("NoSchedule", None, "")
        for toleration in draft.items("spec", "tolerations")
    )
