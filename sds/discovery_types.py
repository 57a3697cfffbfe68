# SPDX-License-Identifier: Apache-2.0
"""The words of the discovery rules: views, limits, errors, receipts and status. No rule lives here.

Limits are per stream and bound what one authenticated client can make us hold: 32 types x 4096 names x 512 bytes is
64 MiB in the worst case, and a real client has four types with a handful of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType

from sds.errors import SdsError
from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET, Resource

# Everything that one client may see: type URL -> resource name -> resource. Immutable by agreement; an unchanged type
# is the very same mapping object in the next view, so that a stream can skip it by identity.
View = Mapping[str, Mapping[str, Resource]]

MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_TYPES = 32
MAX_NAMES = 4096
MAX_NAME_BYTES = 512
# What a client says of itself, without the fields that are of no use here (a stock Envoy's list of extensions, 60 kB).
MAX_NODE_BYTES = 64 * 1024
# gRPC clients refuse messages over 4 MiB by default; where the protocol lets us we send several smaller ones.
MAX_RESPONSE_BYTES = 1024 * 1024

# Make before break: what is pointed at goes out before what points at it (Envoy warms clusters on endpoints and
# secrets, listeners on secrets). Types that are not in the list follow in order of appearance.
MAKE_ORDER = (CLUSTER, ENDPOINT, SECRET, LISTENER)
# A response of these types holds the whole state of the type: in state-of-the-world what is missing is deleted.
# They are also the only types for which asking for no name means everything (the legacy wildcard).
FULL_STATE = frozenset({LISTENER, CLUSTER})
# Types whose resources are named by a listener or a cluster. They are sent again after a push of their parent.
CHILDREN = frozenset({ENDPOINT, SECRET})

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

    SUBSCRIBE = auto()  # first request of a type, changed names, or a request without a nonce
    ACK = auto()
    NACK = auto()
    STALE = auto()  # answers a response that is not the newest: counts neither as ACK nor as NACK


@dataclass(frozen=True, slots=True)
class Receipt:
    """What `receive` made of one request. `error` is the redacted text of a NACK; `missing` how many of the names that
    were newly asked for do not exist for this client, `forbidden` that it may see nothing of the type at all."""

    type_url: str
    kind: Kind
    error: str = ""
    missing: int = 0
    forbidden: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """One response to write. `body` is the serialised message and may hold a private key."""

    type_url: str
    nonce: str
    names: tuple[str, ...]
    removed: tuple[str, ...]
    body: bytes = field(repr=False)


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
