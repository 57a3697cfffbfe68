# SPDX-License-Identifier: Apache-2.0
"""Who is in a mesh, as values: clients, activated instances, and what an instance says about itself. Pure.

What a client says (`Node`) is never believed; it is accepted where its certificate says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MappingProxyType

from manifests.model import Manifest
from sds.attestation.claims import Claims
from sds.identity import marble_spiffe_id
from sds.material import Identity
from sds.resources import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET
from sds.wire.discovery_pb2 import Node
from xds_server.errors import CoordinatorError

ADVERTISE = "ADVERTISE"
RELAY = "RELAY"

Instance = tuple[str, str]  # Marble type, UUID


class AccessDenied(CoordinatorError):
    """This client gets nothing. `status` is the gRPC status name; `reason` a bounded label for metrics.

    The text goes to the client: it speaks of the client's own certificate and request, never of others.
    """

    def __init__(self, status: str, reason: str, text: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(text)


class Role(StrEnum):
    MARBLE = "marble"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Client:
    """An authenticated xDS client: an activated Marble (`name` is its type) or a gateway (no `uuid`)."""

    role: Role
    name: str
    uuid: str = ""

    def __str__(self) -> str:
        return f"{self.name}/{self.uuid}" if self.uuid else self.name

    @property
    def instance(self) -> Instance:
        """Marble type and UUID of a Marble."""
        return self.name, self.uuid

    @property
    def entitled(self) -> frozenset[str]:
        """The resource types that this client may see at all."""
        return _MARBLE_TYPES if self.role is Role.MARBLE else _GATEWAY_TYPES


# Nobody has routes, since what we configure is TCP; who asks for one is told that it does not exist.
_MARBLE_TYPES = frozenset({LISTENER, CLUSTER, ENDPOINT, ROUTE, SECRET})
_GATEWAY_TYPES = frozenset({CLUSTER, ENDPOINT, ROUTE})


@dataclass(frozen=True, slots=True)
class Unusable:
    """A certificate secret of which no identity can be made, and the last one of which that was possible."""

    reason: str
    last: Identity | None = field(default=None, repr=False)


Served = Mapping[str, Identity | Unusable]


@dataclass(frozen=True, slots=True)
class ActiveMarble:
    """An instance whose quote was verified: what it got, and the names that its certificate carries.

    `served`: certificate secrets that its ports present in place of the identity, by their names in the manifest.
    """

    marble_type: str
    uuid: str
    identity: Identity = field(repr=False)
    claims: Claims | None = None
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[IPv4Address | IPv6Address | str, ...] = ()
    served: Served = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def at_rest(self) -> ActiveMarble:
        """The same, as it is kept: see `Identity.at_rest`."""
        return replace(self, identity=self.identity.at_rest())


def denied_to(client: Client, trust_domain: str) -> Callable[[str, str], bool]:
    """Which names this client may not have for sure, whether there is such a thing or not: the secrets of other
    identities of its own mesh."""
    own = marble_spiffe_id(trust_domain, client.name, client.uuid) if client.uuid else ""
    return partial(_is_somebody_elses, own, f"spiffe://{trust_domain}/")


def _is_somebody_elses(own: str, mesh: str, type_url: str, name: str) -> bool:
    return type_url == SECRET and name.startswith(mesh) and name != own


def relays(node: Node) -> bool:
    """Whether the instance's worker carries its data; otherwise an Envoy beside it does."""
    return _metadata(node, RELAY) != "off"


def advertised(marble: ActiveMarble, node: Node) -> str | None:
    """The address under which an instance says that it can be reached: one of the names in its certificate, or None.

    Raises AccessDenied for any other: a broken Marble must not draw others' connections to a stranger.
    """
    value = _metadata(node, ADVERTISE)
    if not value:
        return None
    try:
        address = ip_address(value)
    except ValueError:
        if value.lower() not in {name.lower() for name in marble.dns_names}:
            raise _not_own_address() from None
        return value.lower()
    if not can_be_dialled(value) or address not in {ip_address(str(a)) for a in marble.ip_addresses}:
        raise _not_own_address()
    return str(address)


def _metadata(node: Node, name: str) -> str:
    return node.metadata.fields[name].string_value if name in node.metadata.fields else ""


def _not_own_address() -> AccessDenied:
    return AccessDenied(
        "PERMISSION_DENIED", "bad_address", "the advertised address is not among the names of the certificate"
    )


def can_be_dialled(text: str) -> bool:
    """Whether a text is an IP address at which somebody can be: what a DNS name resolves to is not always one. A zone
    (`fe80::1%eth0`) means something on one machine only."""
    if not is_ip(text) or "%" in text:
        return False
    address = ip_address(text)
    return not (address.is_unspecified or address.is_multicast)


def is_ip(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def turned_out(
    marbles: Iterable[ActiveMarble], manifest: Manifest, allowed: Callable[[ActiveMarble], bool]
) -> dict[Instance, str]:
    """Whom an update to this manifest turns out, and why, as the instance is told."""
    why = {(marble.marble_type, marble.uuid): _why_not(manifest, marble, allowed) for marble in marbles}
    return {instance: reason for instance, reason in why.items() if reason is not None}


def _why_not(manifest: Manifest, marble: ActiveMarble, allowed: Callable[[ActiveMarble], bool]) -> str | None:
    if marble.marble_type not in manifest.marbles:
        return "the manifest has no marble of this type any more"
    if not allowed(marble):
        return "the manifest no longer allows what this marble was attested to be"
    return None
