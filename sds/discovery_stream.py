# SPDX-License-Identifier: Apache-2.0
"""The core of one discovery stream, server side: channels, the order of pushes, nonces. No I/O, no clock.

    request ─receive─► channels ◄─update─ view          take ─► next response, or None

Both protocol variants derive from `Stream`; they add how a request is read and a response built. The order (make before
break): clusters, endpoints, secrets, listeners, routes; what is gone is taken away only after everything that may still
point at it has been replaced and acknowledged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar, NamedTuple

from google.protobuf.message import DecodeError, Message

from sds.discovery_channel import NOTHING, Channel
from sds.discovery_redaction import redact
from sds.discovery_subscription import WILDCARD
from sds.discovery_types import (
    CHILDREN,
    MAKE_ORDER,
    MAX_NAME_BYTES,
    MAX_NAMES_IN_ALL,
    MAX_NODE_BYTES,
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    MAX_TYPES,
    NOT_FOUND,
    PERMISSION_DENIED,
    POINTED_AT_BY,
    POINTED_AT_BY_DEFAULT,
    WAITS_FOR,
    Kind,
    ProtocolError,
    Receipt,
    Response,
    TypeStatus,
    View,
)
from sds.resources import LISTENER, Resource
from sds.wire import discovery_pb2

_RANK = {type_url: rank for rank, type_url in enumerate(MAKE_ORDER)}
# A client's own copy of a type URL would live as long as its stream.
_SHARED_TYPES = {type_url: type_url for type_url in MAKE_ORDER}
# Looking for names in pushed parents: up to 20 ms of it. Beyond, everything that they may name is sent again.
_MAX_SEARCH = 64 * 1024 * 1024
# What a name costs in a response besides itself, in each of the two places where it stands.
_NAME_OVERHEAD = 64
_TEXTS = {
    NOT_FOUND: "does not exist",
    PERMISSION_DENIED: "this identity may not see it",
}


class Batch(NamedTuple):
    """One response to be made: `names` to send, and `gone` to report as gone or not found."""

    channel: Channel
    names: Sequence[str]
    gone: Sequence[str]


_Request = discovery_pb2.DiscoveryRequest | discovery_pb2.DeltaDiscoveryRequest


def nobody(_type_url: str, _name: str) -> bool:
    """What is there belongs to nobody else."""
    return False


class Stream(ABC):
    """One client's stream. `nonce_prefix` must differ between streams, so that an answer to an earlier stream's
    response is never taken for one of this stream. `implied_type` is the type of a stream that serves a single type;
    without it (ADS) every request must name its type. `entitled`: the types that this client may see, None for all.
    `denied(type_url, name)`: whether a name that the client does not see is somebody else's for sure, so that it is
    told "you may not" instead of "there is none"; it must not depend on what exists."""

    __slots__ = (
        "_channels",
        "_count",
        "_denied",
        "_entitled",
        "_identifier",
        "_implied_type",
        "_nonce_prefix",
        "_order",
        "_view",
        "node",
    )

    isolates: ClassVar[bool]
    request_class: ClassVar[type[Message]]

    def __init__(
        self,
        *,
        identifier: str,
        nonce_prefix: str,
        implied_type: str = "",
        entitled: Collection[str] | None = None,
        denied: Callable[[str, str], bool] = nobody,
    ) -> None:
        self._identifier = identifier
        self._nonce_prefix = nonce_prefix
        self._implied_type = implied_type
        self._entitled = entitled
        self._denied = denied
        self._channels: dict[str, Channel] = {}
        self._order: tuple[Channel, ...] = ()
        self._view: View = {}
        self._count = 0
        self.node: discovery_pb2.Node | None = None

    # ---- in

    def receive_bytes(self, data: bytes) -> Receipt:
        """`receive` for a serialised request. Raises ProtocolError also for what is no request at all."""
        if len(data) > MAX_REQUEST_BYTES:
            raise ProtocolError(
                "RESOURCE_EXHAUSTED", f"request of {len(data)} bytes, at most {MAX_REQUEST_BYTES} are accepted"
            )
        request = self.request_class()
        try:
            request.ParseFromString(data)
        except DecodeError:
            raise ProtocolError("INVALID_ARGUMENT", "request is not a valid discovery request") from None
        return self.receive(request)

    @abstractmethod
    def receive(self, request: Message) -> Receipt:
        """Take one request into account. Raises ProtocolError if the stream must be ended."""

    def update(self, view: View) -> None:
        """Everything that the client may see from now on. A type whose mapping is the same object costs nothing."""
        self._view = view
        for channel in self._order:
            if view.get(channel.type_url, NOTHING) is not channel.view and self.is_entitled(channel.type_url):
                channel.update(view.get(channel.type_url, NOTHING))

    def retry_refused(self) -> None:
        """Send once more what the client refused; see `discovery_retry` for when."""
        for channel in self._order:
            if channel.has_refused:
                channel.retry()

    @property
    def has_refused(self) -> bool:
        """Whether something is held back because the client refused it."""
        return any(channel.has_refused for channel in self._order)

    def _channel(self, type_url: str) -> tuple[Channel, bool]:
        """The channel of a request's type, and whether this is its first request."""
        wanted = type_url or self._implied_type
        if (known := self._channels.get(wanted)) is not None:
            return known, False
        if not wanted:
            raise ProtocolError("INVALID_ARGUMENT", "request has no type URL, which an aggregated stream needs")
        if self._implied_type and wanted != self._implied_type:
            raise ProtocolError("INVALID_ARGUMENT", f"this stream serves only {self._implied_type}")
        if len(wanted) > MAX_NAME_BYTES or len(self._channels) >= MAX_TYPES:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {MAX_TYPES} types or an overlong type URL")
        wanted = _SHARED_TYPES.get(wanted, wanted)
        channel = self._channels[wanted] = Channel(wanted, isolate=self.isolates)
        if self.is_entitled(wanted):
            channel.update(self._view.get(wanted, NOTHING))
        # Stable: what is not in the list follows in order of appearance.
        self._order = tuple(sorted(self._channels.values(), key=lambda c: _RANK.get(c.type_url, len(_RANK))))
        return channel, True

    def is_entitled(self, type_url: str) -> bool:
        """Whether this client may see anything of a type."""
        return self._entitled is None or type_url in self._entitled

    def _check_total(self) -> None:
        limit = MAX_NAMES_IN_ALL + sum(len(channel.view) for channel in self._order)
        if sum(len(channel.subscription.names) for channel in self._order) > limit:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {limit} subscribed resource names")

    def _meet(self, request: _Request) -> None:
        """Remember who the client says that it is: the first request says so, later ones may repeat it."""
        if self.node is not None or not request.HasField("node"):
            return
        node = request.node
        node.DiscardUnknownFields()
        if node.ByteSize() > MAX_NODE_BYTES:
            raise ProtocolError("INVALID_ARGUMENT", f"node of {node.ByteSize()} bytes, at most {MAX_NODE_BYTES}")
        self.node = discovery_pb2.Node()
        self.node.CopyFrom(node)  # a part of a message keeps all of it in memory

    @staticmethod
    def _judge(channel: Channel, nonce: str, request: _Request) -> Receipt:
        """ACK, NACK or neither. A NACK is the *presence* of an error, whatever versions say: a client that adds a name
        and rejects it returns the version that it had."""
        failed = request.HasField("error_detail")
        if nonce and (nonce != channel.nonce or (failed and channel.inflight is None)):
            return _receipt(channel.type_url, Kind.STALE)
        if not nonce or channel.inflight is None:
            return _receipt(channel.type_url, Kind.SUBSCRIBE)
        if not failed:
            channel.acked()
            return _receipt(channel.type_url, Kind.ACK)
        error = request.error_detail
        text = redact(error.message) or f"rejected with code {error.code}"
        channel.refused(text)
        return Receipt(channel.type_url, Kind.NACK, text)

    def _counted(self, channel: Channel, receipt: Receipt, asked: Iterable[str]) -> Receipt:
        """The receipt of a request that newly asks for these names."""
        missing = sum(1 for name in asked if name != WILDCARD and name not in channel.view)
        if not missing:
            return receipt
        return replace(receipt, missing=missing, forbidden=not self.is_entitled(channel.type_url))

    # ---- out

    def pending(self) -> bool:
        """Whether `take` would return a response."""
        return self._plan() is not None

    def take(self) -> bytes | None:
        """The next response to write, serialised, or None."""
        response = self.take_response()
        return None if response is None else response.body

    def take_response(self) -> Response | None:
        """The next response with what is in it. It counts as sent: write it, or end the stream."""
        if (plan := self._plan()) is None:
            return None
        channel, names, gone = plan
        if gone:
            gone = _bounded(gone)
        self._count += 1
        nonce = f"{self._nonce_prefix}{self._count}"
        absent = self._absent(channel, gone) if gone else ()
        batch = Batch(channel, names, gone)
        body = self._encode(batch, nonce, absent)
        if (children := CHILDREN.get(channel.type_url)) is not None and names:
            self._send_again(children, [channel.view[name] for name in names])
        channel.written(nonce, self._carried(batch), gone)
        return Response(channel.type_url, nonce, tuple(names), tuple(gone), absent, body)

    def _absent(self, channel: Channel, gone: Sequence[str]) -> tuple[tuple[str, int], ...]:
        """Why there is nothing, for names that were asked for; to a wildcard a removal says it all."""
        asked = channel.subscription.names
        if not self.is_entitled(channel.type_url):
            return tuple((name, PERMISSION_DENIED) for name in gone if name in asked)
        denied, type_url = self._denied, channel.type_url
        return tuple((n, PERMISSION_DENIED if denied(type_url, n) else NOT_FOUND) for n in gone if n in asked)

    @abstractmethod
    def _encode(self, batch: Batch, nonce: str, absent: Sequence[tuple[str, int]]) -> bytes:
        """The serialised response; called before the channel is told that it was written."""

    def _carried(self, batch: Batch) -> Iterable[str]:
        """What stands in the response, changed or not; called after `_encode`."""
        return batch.names

    @abstractmethod
    def _due(self, channel: Channel) -> Batch | None:
        """What the make phase has to send of one type."""

    @abstractmethod
    def _breaking(self, channel: Channel) -> Batch | None:
        """What the break phase has to send of one type."""

    def _plan(self) -> Batch | None:
        active = [channel for channel in self._order if channel.inflight is None and not channel.is_idle()]
        for channel in active:
            if not self._must_wait(channel) and (batch := self._due(channel)) is not None:
                return batch
        for channel in active:
            if self._may_break(channel) and (batch := self._breaking(channel)) is not None:
                return batch
        return None

    def _must_wait(self, channel: Channel) -> bool:
        """Nothing may overtake what it may point at and what is due but waits for an earlier ACK."""
        if (earlier := WAITS_FOR.get(channel.type_url)) is None:
            return False
        return any(self._channels[t].changes() for t in earlier if t in self._channels)

    def _may_break(self, channel: Channel) -> bool:
        """Whether nothing that the client runs can still point at what is gone from this type."""
        if channel.type_url == LISTENER:
            return True
        parents = POINTED_AT_BY.get(channel.type_url, POINTED_AT_BY_DEFAULT)
        return all(self._channels[t].is_settled() for t in parents if t in self._channels)

    def _send_again(self, children: Iterable[str], parents: Sequence[Resource]) -> None:
        """Envoy may make a new, empty subscription for a secret (endpoints, a route) that it already asked for when a
        listener or cluster changes, without a new request; nothing would arrive and the new listener would go active
        without a certificate. So what the pushed resources name is sent again. Looking for the name in the serialised
        parent needs no schema; a false hit costs one spare push."""
        text = b"\0".join([parent.body for parent in parents])
        for type_url in children:
            if (child := self._channels.get(type_url)) is None:
                continue
            known = [name for name in child.sent if name in child.view]
            if len(known) * len(text) <= _MAX_SEARCH:
                known = [name for name in known if name.encode() in text]
            child.ask(known)

    # ---- about

    @property
    def subscriptions(self) -> Iterable[tuple[str, int]]:
        """How many names are asked for, by type URL; a wildcard counts as one."""
        for channel in self._order:
            yield channel.type_url, len(channel.subscription.names) + channel.subscription.wildcard

    def is_current(self, type_url: str) -> bool:
        """Whether the client holds what it asked for of a type, as it is in the view; true if it asked for nothing."""
        channel = self._channels.get(type_url)
        return channel is None or channel.is_current()

    @property
    def status(self) -> Mapping[str, TypeStatus]:
        """Where the client stands, by type URL: a plain value, without any content."""
        return {channel.type_url: channel.status for channel in self._order}


@lru_cache(maxsize=256)
def _receipt(type_url: str, kind: Kind) -> Receipt:
    return Receipt(type_url, kind)


def _bounded(names: Sequence[str]) -> Sequence[str]:
    """The first of the names, as many as fit into one response; the others follow in the next one."""
    size = 0
    for count, name in enumerate(names):
        size += 2 * (len(name.encode()) + _NAME_OVERHEAD)
        if count and size > MAX_RESPONSE_BYTES:
            return names[:count]
    return names


def absences(absent: Iterable[tuple[str, int]]) -> list[discovery_pb2.ResourceError]:
    """`resource_errors` of either response."""
    return [
        discovery_pb2.ResourceError(
            resource_name=discovery_pb2.ResourceName(name=name),
            error_detail=discovery_pb2.Status(code=code, message=_TEXTS[code]),
        )
        for name, code in absent
    ]
