# SPDX-License-Identifier: Apache-2.0
"""Whether a manifest can be served, looked at once before anything depends on it. Pure.

Nothing is kept of what is built here: a mesh of 10 000 types serves the resources of those that run. What types have in
common (a TLS tag) is looked at once, so that a manifest costs what it says, and not its types times its tags.
"""

from __future__ import annotations

from collections.abc import Iterator

from cryptography import x509

from manifests.model import Incoming, Manifest, TlsTag
from sds.ca import pem_of
from sds.material import MAX_BUNDLE, MaterialError, is_ca, parse_certificates
from sds.resources import MAX_MATCHERS, MAX_RESOURCE, types_secret
from xds_server import snapshot_routes as routes
from xds_server.rotation import MAX_ROOTS
from xds_server.snapshot_tls import SnapshotError

# 40 MiB of memory when it is set, and 1 MiB for each thousand that run.
MAX_TYPES = 10_000
# A gateway is shown every port; its clusters are made when the manifest is set, 0.5 KiB each.
MAX_GATEWAY_PORTS = 20_000
# A port's bundle holds the certificates of its gateways beside every root of a rotation.
MAX_PORT_GATEWAYS = MAX_BUNDLE - MAX_ROOTS
# The address that a listener is bound to and the mark of its filter chain.
_ROOM = 256


def check(manifest: Manifest, trust_domain: str) -> None:
    """Raises SnapshotError, which names the entry, if the manifest cannot be turned into resources."""
    _check_size(manifest, trust_domain)
    for name, gateway in manifest.mesh.gateways.items():
        _check_gateway(name, gateway.certificate)
    seen: set[tuple[str, ...]] = set()
    for name, marble in manifest.marbles.items():
        if marble.tls not in seen:
            seen.add(marble.tls)
            routes.incoming_of(manifest, name)
            routes.outgoing_of(manifest, name)
    for tag in _used(manifest):
        _check_tag(tag, manifest, trust_domain)


def _check_size(manifest: Manifest, trust_domain: str) -> None:
    if len(manifest.marbles) > MAX_TYPES:
        raise SnapshotError(f"Marbles: {len(manifest.marbles)} types, at most {MAX_TYPES} can be served")
    try:
        types_secret(trust_domain, manifest.marbles)
    except MaterialError as e:
        raise SnapshotError(f"Marbles: {e}") from None
    if manifest.mesh.gateways:
        tags = (manifest.tls[name] for marble in manifest.marbles.values() for name in marble.tls)
        if (ports := sum(len(tag.incoming) for tag in tags)) > MAX_GATEWAY_PORTS:
            raise SnapshotError(f"Mesh.Gateways: {ports} ports, at most {MAX_GATEWAY_PORTS} can be shown to a gateway")


def _check_gateway(name: str, certificate: x509.Certificate) -> None:
    if is_ca(certificate):
        # It is trusted as an anchor on ports that list it: as a CA it could make itself any Marble.
        raise SnapshotError(f"Mesh.Gateways.{name}: a CA certificate cannot be a gateway's identity")
    try:
        parse_certificates(pem_of(certificate), "certificate", 1)
    except MaterialError as e:
        raise SnapshotError(f"Mesh.Gateways.{name}: {e}") from None


def _used(manifest: Manifest) -> Iterator[TlsTag]:
    names = dict.fromkeys(name for marble in manifest.marbles.values() for name in marble.tls)
    return (manifest.tls[name] for name in names)


def _check_tag(tag: TlsTag, manifest: Manifest, trust_domain: str) -> None:
    place = routes.Place(manifest, trust_domain)
    for incoming in tag.incoming:
        _check_gateways(incoming, manifest)
        listener = routes.inbound_listener(incoming, place, routes.ANYWHERE)
        if len(incoming.peers or ()) > MAX_MATCHERS or listener.ByteSize() > MAX_RESOURCE - _ROOM:
            raise SnapshotError(
                f"port {incoming.port}: {len(incoming.peers or ())} Peers are more than a worker takes, at most "
                f"{MAX_MATCHERS}, and their names a megabyte; without Peers any Marble may connect"
            )
        routes.app_cluster(incoming)
    for outgoing in tag.outgoing:
        routes.outbound_listener(outgoing)
        routes.outbound_cluster(outgoing, place)


def _check_gateways(incoming: Incoming, manifest: Manifest) -> None:
    gateways = sum(peer in manifest.mesh.gateways for peer in incoming.peers or ())
    if gateways > MAX_PORT_GATEWAYS:
        raise SnapshotError(
            f"trust bundle of port {incoming.port}: {gateways} gateways, at most {MAX_PORT_GATEWAYS} are accepted"
        )
