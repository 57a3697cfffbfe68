# SPDX-License-Identifier: Apache-2.0
"""The newest credentials, for everybody who needs them: the stream to the Coordinator, the local SDS socket, the admin.

What stands here has passed the check that a peer would make; a pushed identity that fails it never gets here.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from enclave_proxy.bootstrap import Credentials
from sds.discovery_types import View
from sds.identity import IdentityError
from sds.latest import Latest
from sds.material import Identity, TrustBundle, check_bundle, check_identity
from sds.resources import BUNDLE_NAME, IDENTITY_NAME, SECRET, bundle_secret, identity_secret


class IdentityStore:
    """One writer (whoever handles the stream), many readers."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self.view: Latest[View] = Latest(_view(credentials))

    @property
    def credentials(self) -> Credentials:
        """What new connections use."""
        return self._credentials

    def check(self, name: str, secret: Identity | TrustBundle, now: datetime) -> None:
        """Raise MaterialError unless a pushed secret may be used: would our peers accept it, would it accept them?"""
        match secret:
            case Identity() if name == IDENTITY_NAME:
                check_identity(secret, self._credentials.bundle, now)
            case TrustBundle():
                # Ports that admit gateways list the gateways' own certificates beside the mesh's CA.
                check_bundle(secret, now, pinned_leaves=name != BUNDLE_NAME)

    async def accept(self, name: str, secret: Identity | TrustBundle) -> None:
        """Publish a checked secret if it is our identity or bundle; other names are the relay's business alone."""
        match name, secret:
            case (n, Identity()) if n == IDENTITY_NAME:
                await self.adopt(replace(self._credentials, identity=secret))
            case (n, TrustBundle()) if n == BUNDLE_NAME:
                await self.adopt(replace(self._credentials, bundle=secret))

    async def adopt(self, credentials: Credentials) -> None:
        """Replace everything at once."""
        self._credentials = credentials
        await self.view.publish(_view(credentials))

    async def withdraw(self) -> None:
        """Give nothing to anybody any more: this Marble was turned out of the mesh."""
        await self.view.publish({SECRET: {}})


def _view(credentials: Credentials) -> View:
    """Under the names that Istio and SPIRE users write, and by SPIFFE ID and trust domain, as the Coordinator does."""
    identities, bundles = [IDENTITY_NAME], [BUNDLE_NAME]
    # A MarbleRun Coordinator's leaf has no SPIFFE ID.
    with suppress(IdentityError):
        spiffe_id = credentials.identity.spiffe_id
        identities.append(str(spiffe_id))
        bundles.append(f"spiffe://{spiffe_id.trust_domain}")
    secrets = [identity_secret(name, credentials.identity) for name in identities]
    secrets += [bundle_secret(name, credentials.bundle) for name in bundles]
    return {SECRET: {secret.name: secret for secret in secrets}}
