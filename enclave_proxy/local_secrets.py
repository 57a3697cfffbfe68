# SPDX-License-Identifier: Apache-2.0
"""What the local SDS socket gives, and under which names: those that Envoy users of SPIRE and Istio write already.

    default            the identity                    SPIRE's and Istio's
    spiffe://td/...    the same, by its SPIFFE ID      SPIRE's
    ROOTCA             the mesh's trust bundle         SPIRE's and Istio's
    spiffe://td        the same, by its trust domain   SPIRE's
    ALL                the same, in Envoy's SPIFFE validator
    anything else      a certificate that the manifest lets a port of this Marble present, by its name in the manifest

There is no more to be had: no other instance's identity ever reaches this process. Istio's `file-cert:` and
`file-root:` ask its agent to read files; this worker reads none for others, so that they do not exist, like any other
name.
"""

from __future__ import annotations

from collections.abc import Mapping

from enclave_proxy.bootstrap import Credentials
from sds.discovery_types import View
from sds.identity import IdentityError, SpiffeId
from sds.material import Identity
from sds.resources import (
    BUNDLE_NAME,
    IDENTITY_NAME,
    OFFLINE_NAME,
    REVOKED_NAME,
    SECRET,
    TYPES_NAME,
    Resource,
    bundle_secret,
    identity_secret,
)
from sds.spiffe_validator import spiffe_validator_secret

ALL_BUNDLES_NAME = "ALL"
NOTHING: View = {SECRET: {}}


def is_own_name(name: str) -> bool:
    """Is this the name of what the worker itself proves or trusts or refuses with, not of a secret of the manifest?"""
    if name in (IDENTITY_NAME, BUNDLE_NAME, ALL_BUNDLES_NAME, REVOKED_NAME, TYPES_NAME, OFFLINE_NAME):
        return True
    return name.startswith((f"{BUNDLE_NAME}|", "spiffe://"))


def local_view(credentials: Credentials, presented: Mapping[str, Identity]) -> View:
    """Every spelling of everything, serialised once for all clients. `presented`: certificates of the manifest."""
    found = [identity_secret(IDENTITY_NAME, credentials.identity), bundle_secret(BUNDLE_NAME, credentials.bundle)]
    if (spiffe_id := spiffe_id_of(credentials.identity)) is not None:
        domain = spiffe_id.trust_domain
        found.append(identity_secret(str(spiffe_id), credentials.identity))
        found.append(bundle_secret(f"spiffe://{domain}", credentials.bundle))
        found.append(spiffe_validator_secret(ALL_BUNDLES_NAME, {domain: credentials.bundle}))
    found += [identity_secret(name, identity) for name, identity in presented.items() if not is_own_name(name)]
    secrets: dict[str, Resource] = {secret.name: secret for secret in found}
    return {SECRET: secrets}


def spiffe_id_of(identity: Identity) -> SpiffeId | None:
    """The identity's SPIFFE ID; None if it has none, as one from a MarbleRun Coordinator."""
    try:
        return identity.spiffe_id
    except IdentityError:
        return None
