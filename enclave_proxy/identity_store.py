# SPDX-License-Identifier: Apache-2.0
"""The newest credentials, for everybody who needs them: the stream to the Coordinator, the local sockets, the admin.

What stands here has passed the check that a peer would make; a pushed identity that fails it never gets here. What is
given to others is checked once more as the very bytes that they get: see `sds.publish_gate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.local_secrets import NOTHING, is_own_name, local_view
from sds.discovery_types import View
from sds.latest import Latest
from sds.material import Identity, TrustBundle, check_bundle, check_chain, check_identity, check_server
from sds.publish_gate import PublishGate, Withheld
from sds.resources import BUNDLE_NAME, IDENTITY_NAME, SECRET

_OWNER = ("local",)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class IdentityStore:
    """One writer (whoever handles the stream), many readers.

    `view` is what the SDS socket gives, `shared` what the Workload API is made from: None once this Marble is none.
    """

    def __init__(self, credentials: Credentials, now: Callable[[], datetime] = _utc_now) -> None:
        self._credentials = credentials
        self._presented: dict[str, Identity] = {}
        self._gate = PublishGate(now)
        self.shared: Latest[Credentials | None] = Latest(credentials)
        self.view: Latest[View] = Latest(self._fit())

    @property
    def credentials(self) -> Credentials:
        """What new connections use."""
        return self._credentials

    def check(self, name: str, secret: Identity | TrustBundle, now: datetime) -> None:
        """Raise MaterialError unless a pushed secret may be used: would our peers accept it, would it accept them?"""
        match secret:
            case Identity() if name == IDENTITY_NAME:
                check_identity(secret, self._credentials.bundle, now)
            case Identity():
                check_chain(secret, now)
                check_server(secret.leaf)
            case TrustBundle():
                # Ports that admit gateways list the gateways' own certificates beside the mesh's CA.
                check_bundle(secret, now, pinned_leaves=name != BUNDLE_NAME)

    async def accept(self, name: str, secret: Identity | TrustBundle) -> None:
        """Publish a checked secret: our identity, our bundle, or a certificate of the manifest. Bundles of single ports
        are the relay's business alone."""
        match name, secret:
            case (n, Identity()) if n == IDENTITY_NAME:
                await self.adopt(replace(self._credentials, identity=secret))
            case (n, TrustBundle()) if n == BUNDLE_NAME:
                await self.adopt(replace(self._credentials, bundle=secret))
            case (n, Identity()) if not is_own_name(n):
                self._presented[n] = secret
                await self._publish()

    async def forget(self, names: Iterable[str]) -> None:
        """These certificates are not this Marble's to present any more. Whoever has one already keeps it."""
        dropped = [self._presented.pop(name) for name in names if name in self._presented]
        if dropped:
            await self._publish()

    async def adopt(self, credentials: Credentials) -> None:
        """Replace everything at once."""
        self._credentials = credentials
        await self._publish()
        await self.shared.publish(credentials)

    async def withdraw(self) -> None:
        """Give nothing to anybody any more: this Marble was turned out of the mesh."""
        self._presented.clear()
        await self.view.publish(NOTHING)
        await self.shared.publish(None)

    async def _publish(self) -> None:
        await self.view.publish(self._fit())

    def _fit(self) -> View:
        """What there is to give, as far as it is fit to be given; else the last that was."""
        return {SECRET: self._gate.let_out(_OWNER, local_view(self._credentials, self._presented)[SECRET])}

    @property
    def withheld(self) -> tuple[Withheld, ...]:
        """What local clients would have and do not get, and why."""
        return self._gate.withheld_from(_OWNER)
