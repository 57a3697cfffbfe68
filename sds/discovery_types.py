# SPDX-License-Identifier: Apache-2.0
"""The words of the discovery rules: views, limits, errors, receipts and status. No rule lives here.

Limits are per stream and bound what one authenticated client can make us hold: 8192 names of 512 bytes in all, with
what is noted beside each less than 8 MiB; a real client has four types with a handful of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType
from typing import NamedTuple

from sds.errors import SdsError
from sds.resources import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE, SECRET, Resource

# Everything that one client may see: type URL -> resource name -> resource. Immutable by agreement; an unchanged type
# is the very same mapping object in the next view, so that a stream can skip it by identity.
View = Mapping[str, Mapping[str, Resource]]

MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_TYPES = 32
MAX_NAMES = 4096  # of one type
MAX_NAMES_IN_ALL = 8192
MAX_NAME_BYTES = 512
# What a client says of itself, without the fields that are of no use here (a stock Envoy's list of extensions, 60 kB).
MAX_NODE_BYTES = 64 * 1024
# What ours are; what is longer in a client's list of what it holds is no version of ours, and is not repeated.
MAX_VERSION = 16
# gRPC clients refuse messages over 4 MiB by default; where the protocol lets us we send several smaller ones.
MAX_RESPONSE_BYTES = 1024 * 1024

# Make before break: what is pointed at goes out before what points at it (Envoy warms clusters on endpoints and
# secrets, listeners on secrets, never routes). Types that are not in the list follow in order of appearance.
MAKE_ORDER = (CLUSTER, ENDPOINT, SECRET, LISTENER, ROUTE)
# What must have been written before a type goes out: here it points at it, and a client that waits could not tell.
WAITS_FOR = {LISTENER: (CLUSTER, ENDPOINT, SECRET), ROUTE: (CLUSTER, ENDPOINT, LISTENER)}
# What may point at a type: it must be replaced, and that acknowledged, before anything of the type is taken away.
POINTED_AT_BY = {LISTENER: (), ROUTE: (LISTENER,), CLUSTER: (LISTENER, ROUTE)}
POINTED_AT_BY_DEFAULT = (LISTENER, CLUSTER)
# A response of these types holds the whole state of the type: in state-of-the-world what is missing is deleted.
# They are also the only types for which asking for no name means everything (the legacy wildcard), and the only ones
# for which a reconnecting client is believed to hold what it says: it may hold one of another type and wait for it.
FULL_STATE = frozenset({LISTENER, CLUSTER})
# Types whose resources a listener or a cluster names. They are sent again after a push of their parent.
CHILDREN = {CLUSTER: (ENDPOINT, SECRET), LISTENER: (SECRET, ROUTE)}
# An Envoy that is told that an extension's configuration was removed takes the filter out of its listeners and lets
# traffic pass without it (or fails); not-found is said in `resource_errors` alone.
NEVER_REMOVED = frozenset({EXTENSION_CONFIG})

# google.rpc.Code
NOT_FOUND = 5
PERMISSION_DENIED = 7
INTERNAL = 13


# How the text of a PERMISSION_DENIED begins that tells a Marble for good that it is no longer part of the mesh.
REVOKED = "revoked: "


class ProtocolError(SdsError):
    """The peer broke a rule of the protocol. `status` is the gRPC status name to end the stream with.

    The text is fit to be shown to the peer: it says what was wrong with its own message and nothing else.
    """

    def __init__(self, status: str, text: str) -> None:
        self.status = status
        super().__init__(text)


class Kind(Enum):
    """What a request was, seen from the server."""

    SUBSCRIBE = (
        auto()
    )  # first request of a type, or one that answers nothing: no nonce, or that of an answered response
    ACK = auto()
    NACK = auto()
    STALE = auto()  # answers a response that is not the one under way: counts neither as ACK nor as NACK


@dataclass(frozen=True, slots=True)
class Receipt:
    """What `receive` made of one request. `error` is the redacted text of a NACK; `missing` how many of the names that
    were newly asked for do not exist for this client, `forbidden` that it may see nothing of the type at all."""

    type_url: str
    kind: Kind
    error: str = ""
    missing: int = 0
    forbidden: bool = False


class Response(NamedTuple):
    """One response to write. `removed`: names that are gone or never were; `absent`: those of them that the client
    asked for by name, with NOT_FOUND or PERMISSION_DENIED. `body` is the serialised message and may hold a private key.
    """

    type_url: str
    nonce: str
    names: tuple[str, ...]
    removed: tuple[str, ...]
    absent: tuple[tuple[str, int], ...]
    body: bytes

    def __repr__(self) -> str:
        return f"Response({self.type_url!r}, {self.nonce!r}, names={self.names}, removed={self.removed})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeStatus:
    """Where one client stands with one type. Versions by resource name; `error` is the last NACK's redacted text.

    `current` is what there is for it now, of what it asked for.
    """

    type_url: str
    current: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    wildcard: bool = False
    subscribed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    sent: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    acked: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    nacked: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    awaiting_ack: bool = False
    answered: bool = False  # at least one response of this type was ACKed on this stream
    error: str = ""
