# SPDX-License-Identifier: Apache-2.0
"""Who a client is and what it may do. Pure: certificates and a manifest in, a name or a refusal out.

A user is whoever holds the key of the very certificate in the manifest: compared byte by byte, issuer and dates are not
looked at. There are no sessions. Permissions of several roles add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cryptography.hazmat.primitives.serialization import Encoding

from manifests.model import Action, Manifest, ResourceType, Role
from xds_server.errors import NotAllowed, Unauthorized


def user_of(manifest: Manifest | None, certificates: Sequence[bytes]) -> str:
    """The user with one of these DER certificates; raises Unauthorized.

    Only the first one's key is proven by TLS. MarbleRun tries the whole chain, so that anybody could append a user's
    (public) certificate to a chain of his own and be that user; so here only the leaf counts.
    """
    if manifest is not None and certificates:
        for name, user in manifest.users.items():
            if user.certificate.public_bytes(Encoding.DER) == certificates[0]:
                return name
    raise Unauthorized("unauthorized user: client certificate did not match any MarbleRun users")


def may(manifest: Manifest, user: str, action: Action, resources: Iterable[str] = ()) -> bool:
    """Whether the user's roles together allow the action on every one of the resources (none: on the manifest)."""
    roles = [manifest.roles[name] for name in manifest.users[user].roles]
    granting = [role for role in roles if action in role.actions]
    wanted = set(resources)
    if action is Action.UPDATE_MANIFEST:
        return any(role.resource_type is ResourceType.MANIFEST for role in granting)
    return bool(wanted) and wanted <= _resources(granting)


def _resources(roles: Iterable[Role]) -> set[str]:
    return {name for role in roles for name in role.resource_names}


def check_may_read(manifest: Manifest, user: str, secrets: Sequence[str]) -> None:
    if not may(manifest, user, Action.READ_SECRET, secrets):
        raise NotAllowed(f"user {user} is not allowed to read one or more secrets of: {_go_list(secrets)}")


def check_may_write(manifest: Manifest, user: str, secrets: Iterable[str]) -> None:
    for secret in secrets:
        if not may(manifest, user, Action.WRITE_SECRET, (secret,)):
            raise NotAllowed(f"user {user} is not allowed to update secret: {secret}")


def check_may_raise(manifest: Manifest, user: str, packages: Sequence[str]) -> None:
    if not may(manifest, user, Action.UPDATE_SECURITY_VERSION, packages):
        raise NotAllowed(f"user {user} is not allowed to update one or more packages of {_go_list(packages)}")


def check_may_update(manifest: Manifest, user: str) -> None:
    if not may(manifest, user, Action.UPDATE_MANIFEST):
        raise NotAllowed(f"user {user} is not allowed to update the complete manifest")


def updaters(manifest: Manifest) -> tuple[str, ...]:
    """Everybody who may update the manifest, in its order."""
    return tuple(name for name in manifest.users if may(manifest, name, Action.UPDATE_MANIFEST))


def _go_list(names: Sequence[str]) -> str:
    return f"[{' '.join(names)}]"
