# SPDX-License-Identifier: Apache-2.0
"""Which ports of a Marble carry the mesh's own TLS, and what that means to a Linkerd proxy beside it.

Linkerd forwards TLS that is not its own untouched, but closes a connection that sends nothing for ten seconds unless it
knows the port as opaque. Hence every port where TLS of the mesh arrives is marked, on the pod and on its Service.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from manifests.model import Manifest

OPAQUE_PORTS = "config.linkerd.io/opaque-ports"
SKIP_INBOUND_PORTS = "config.linkerd.io/skip-inbound-ports"
SKIP_OUTBOUND_PORTS = "config.linkerd.io/skip-outbound-ports"

# Marble API, client API (a worker with a pin asks it), xDS: the Coordinator's defaults, TLS with keys of its own.
COORDINATOR_PORTS = (2001, 4433, 18000)
# What Linkerd skips if an annotation does not say otherwise; an annotation replaces this list.
_SKIPPED_BY_DEFAULT = (4567, 4568)


class LinkerdMode(StrEnum):
    """How mesh ports are marked. OPAQUE: Linkerd carries them, in its own mTLS, as bytes. SKIP: past Linkerd."""

    OPAQUE = "opaque"
    SKIP = "skip"


class UnknownMarble(ValueError):
    """The manifest has no such Marble; the message names those that it has."""


@dataclass(frozen=True, slots=True)
class MeshPorts:
    """Ports, ascending, each once. `inbound`: where the worker terminates mTLS. `outbound`: where it dials peers;
    a Coordinator's own ports are not among them."""

    inbound: tuple[int, ...]
    outbound: tuple[int, ...]


def mesh_ports(manifest: Manifest, marble_type: str) -> MeshPorts:
    """The ports in all TLS tags of one Marble. Raises UnknownMarble."""
    marble = manifest.marbles.get(marble_type)
    if marble is None:
        known = ", ".join(sorted(manifest.marbles)) or "none"
        raise UnknownMarble(f"the manifest has no Marble {marble_type[:80]!r}; it has {known[:400]}")
    tags = [manifest.tls[name] for name in marble.tls]
    return MeshPorts(
        inbound=_ports(entry.port for tag in tags for entry in tag.incoming),
        outbound=_ports(entry.port for tag in tags for entry in tag.outgoing),
    )


def pod_annotations(ports: MeshPorts, mode: LinkerdMode) -> dict[str, str]:
    """Annotations of the pod template, by name; none if no port needs one."""
    if mode is LinkerdMode.OPAQUE:
        return service_annotations(ports.inbound, mode)
    skipped = {SKIP_OUTBOUND_PORTS: _text({*ports.outbound, *COORDINATOR_PORTS, *_SKIPPED_BY_DEFAULT})}
    if ports.inbound:
        skipped[SKIP_INBOUND_PORTS] = _text({*ports.inbound, *_SKIPPED_BY_DEFAULT})
    return skipped


def service_annotations(ports: Iterable[int], mode: LinkerdMode) -> dict[str, str]:
    """Annotations of a Service in front of such pods: without them clients of its cluster IP do not know of the marking
    on the pod. `ports` are the Service's own numbers. Skipped ports are looked up on the pod alone."""
    opaque = _text(set(ports))
    return {OPAQUE_PORTS: opaque} if opaque and mode is LinkerdMode.OPAQUE else {}


def _ports(texts: Iterable[str]) -> tuple[int, ...]:
    return tuple(sorted({int(text) for text in texts}))


def _text(ports: set[int]) -> str:
    return ",".join(map(str, sorted(ports)))
