# SPDX-License-Identifier: Apache-2.0
"""What an xDS client proves with its certificate, and whether the rest of what it says contradicts that. Pure.

The TLS layer has verified *a* chain to *some* trusted certificate. What counts is checked again here, so that nothing
but the mesh's own CA can name a Marble, whatever else TLS trusts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from cryptography import x509

from sds.ca import pem_of
from sds.identity import IdentityError, MarbleIdentity, marble_identity
from sds.material import MaterialError, is_ca
from xds_server.mesh_clients import AccessDenied, ActiveMarble, Client, Instance, Role
from xds_server.rotation import Rotation


def check_dates(certificate: x509.Certificate, now: datetime) -> None:
    """Raises AccessDenied outside of the certificate's time."""
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise AccessDenied("UNAUTHENTICATED", "expired", "certificate is expired or not valid yet")


def identity_of(
    certificate: x509.Certificate,
    roots: Rotation,
    trust_domain: str,
    now: datetime,
    marbles: Mapping[Instance, ActiveMarble],
) -> MarbleIdentity:
    """The Marble that a certificate of one of the mesh's roots names. Raises AccessDenied.

    Who shows byte for byte what it was given last needs no check of the signature, which is a third of what a mesh
    costs that comes back at once.
    """
    try:
        identity = marble_identity(certificate)
        marble = marbles.get((identity.type, identity.uuid))
        given = marble is not None and marble.identity.chain.startswith(pem_of(certificate))
        if not (given and roots.names_key_of(certificate, now)):
            roots.check_issued(certificate, now)
    except (MaterialError, IdentityError) as e:
        raise AccessDenied("UNAUTHENTICATED", "untrusted", f"certificate is not an identity of this mesh: {e}") from e
    if is_ca(certificate) or identity.spiffe_id.trust_domain != trust_domain:
        raise AccessDenied("UNAUTHENTICATED", "untrusted", "certificate is not an identity of this mesh")
    return identity


def check_node_id(named: str, client: Client, own: Collection[str], types: Collection[str]) -> None:
    """`node.id` may be anything, except the name of somebody else in this mesh: neither another URI than the client's
    `own`, nor another instance of one of the mesh's `types`. Raises AccessDenied."""
    if named.startswith("spiffe://"):
        contradicts = named not in own
    else:
        kind, slash, _ = named.partition("/")
        contradicts = client.role is Role.MARBLE and bool(slash) and kind in types and named != str(client)
    if contradicts:
        raise AccessDenied("PERMISSION_DENIED", "node_mismatch", "node.id names somebody else than the certificate")
