# SPDX-License-Identifier: Apache-2.0
"""The core of one discovery stream, server side: channels, the order of pushes, nonces. No I/O, no clock.

    request ─receive─► channels ◄─update─ view          take ─► next response, or None

Both protocol variants derive from `Stream`; they add how a request is read and a response built. The order (make before
break): clusters, endpoints, secrets, listeners; what is gone is taken away only after everything that may still point
at it has been replaced and acknowledged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar

from google.protobuf.message import DecodeError, Message

from sds.discovery_channel import Channel
from sds.discovery_redaction import redact
from sds.discovery_subscription import WILDCARD
from sds.discovery_types import (
    CHILDREN,
    MAKE_ORDER,
    MAX_NAME_BYTES,
    MAX_NODE_BYTES,
    MAX_REQUEST_BYTES,
    MAX_TYPES,
    Kind,
    ProtocolError,
    Receipt,
    Response,
    TypeStatus,
    View,
)
from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET, Resource
from sds.wire import discovery_pb2

_NOTHING: Mapping[str, Resource] = MappingProxyType({})
Batch = tuple[Channel, Sequence[str], Sequence[str]]  # channel, names to send, names to report as gone


class Stream(ABC):
    """One client's stream. `nonce_prefix` must differ between streams, so that an answer to an earlier stream's
    response is never taken for one of this stream. `implied_type` is the type of a stream that serves a single type;
    without it (ADS) every request must name its type. `entitled`: the types that this client may see, None for all."""

    isolates: ClassVar[bool]
    request_class: ClassVar[type[Message]]

    def __init__(
        self,
        *,
        identifier: str,
        nonce_prefix: str,
        implied_type: str = "",
        entitled: Collection[str] | None = None,
    ) -> None:
        self._control_plane = discovery_pb2.ControlPlane(identifier=identifier)
        self._nonce_prefix = nonce_prefix
        self._implied_type = implied_type
        self._entitled = entitled
        self._channels: dict[str, Channel] = {}
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
        """Everything that the client may see from now on."""
        self._view = view
        for channel in self._channels.values():
            channel.update(self._visible(channel.type_url))

    def _channel(self, type_url: str) -> tuple[Channel, bool]:
        """The channel of a request's type, and whether this is its first request."""
        wanted = type_url or self._implied_type
        if not wanted:
            raise ProtocolError("INVALID_ARGUMENT", "request has no type URL, which an aggregated stream needs")
        if self._implied_type and wanted != self._implied_type:
            raise ProtocolError("INVALID_ARGUMENT", f"this stream serves only {self._implied_type}")
        if (known := self._channels.get(wanted)) is not None:
            return known, False
        if len(wanted) > MAX_NAME_BYTES or len(self._channels) >= MAX_TYPES:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"more than {MAX_TYPES} types or an overlong type URL")
        channel = self._channels[wanted] = Channel(wanted, isolate=self.isolates)
        channel.update(self._visible(wanted))
        return channel, True

    def _visible(self, type_url: str) -> Mapping[str, Resource]:
        return self._view.get(type_url, _NOTHING) if self.is_entitled(type_url) else _NOTHING

    def is_entitled(self, type_url: str) -> bool:
        """Whether this client may see anything of a type."""
        return self._entitled is None or type_url in self._entitled

    @staticmethod
    def _judge(channel: Channel, nonce: str, error: discovery_pb2.Status | None) -> Receipt:
        """ACK, NACK or neither. A NACK is the *presence* of an error, whatever versions say: a client that adds a name
        and rejects it returns the version that it had."""
        if not nonce:
            return Receipt(channel.type_url, Kind.SUBSCRIBE)
        if nonce != channel.nonce:
            return Receipt(channel.type_url, Kind.STALE)
        if error is None:
            channel.acked()
            return Receipt(channel.type_url, Kind.ACK)
        text = redact(error.message) or f"rejected with code {error.code}"
        channel.refused(text)
        return Receipt(channel.type_url, Kind.NACK, text)

    def _counted(self, channel: Channel, receipt: Receipt, asked: Iterable[str]) -> Receipt:
        """The receipt of a request that newly asks for these names."""
        missing = sum(1 for name in asked if name != WILDCARD and name not in channel.view)
        if not missing:
            return receipt
        return replace(receipt, missing=missing, forbidden=not self.is_entitled(channel.type_url))

    def _meet(self, node: discovery_pb2.Node) -> None:
        """Remember who the client says that it is: the first request says so, later ones may repeat it."""
        if self.node is not None:
            return
        node.DiscardUnknownFields()
        if node.ByteSize() > MAX_NODE_BYTES:
            raise ProtocolError("INVALID_ARGUMENT", f"node of {node.ByteSize()} bytes, at most {MAX_NODE_BYTES}")
        self.node = discovery_pb2.Node()
        self.node.CopyFrom(node)  # a part of a message keeps all of it in memory

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
        self._count += 1
        nonce = f"{self._nonce_prefix}{self._count}"
        body = self._encode(channel, names, gone, nonce)
        if channel.type_url not in CHILDREN:
            self._send_children_again([channel.view[name].body for name in names])
        channel.written(nonce, names, gone)
        return Response(channel.type_url, nonce, tuple(names), tuple(gone), body)

    @abstractmethod
    def _encode(self, channel: Channel, names: Sequence[str], gone: Sequence[str], nonce: str) -> bytes:
        """The serialised response; called before the channel is told that it was written."""

    @abstractmethod
    def _due(self, channel: Channel) -> Batch | None:
        """What the make phase has to send of one type."""

    @abstractmethod
    def _breaking(self, channel: Channel) -> Batch | None:
        """What the break phase has to send of one type."""

    def _plan(self) -> Batch | None:
        for channel in self._ordered():
            if channel.inflight is None and not self._must_wait(channel) and (batch := self._due(channel)):
                return batch
        for channel in self._ordered():
            if channel.inflight is None and self._may_break(channel) and (batch := self._breaking(channel)):
                return batch
        return None

    def _ordered(self) -> Iterator[Channel]:
        yield from (self._channels[t] for t in MAKE_ORDER if t in self._channels)
        yield from (c for t, c in self._channels.items() if t not in MAKE_ORDER)

    def _must_wait(self, channel: Channel) -> bool:
        """A listener must not overtake what it may point at and what is due but waits for an earlier ACK."""
        if channel.type_url != LISTENER:
            return False
        return any(self._channels[t].changes() for t in (CLUSTER, ENDPOINT, SECRET) if t in self._channels)

    def _may_break(self, channel: Channel) -> bool:
        """Whether nothing that the client runs can still point at what is gone from this type."""
        if channel.type_url == LISTENER:
            return True
        parents = (LISTENER,) if channel.type_url == CLUSTER else (LISTENER, CLUSTER)
        return all(self._channels[t].is_settled() for t in parents if t in self._channels)

    def _send_children_again(self, parents: list[bytes]) -> None:
        """Envoy may make a new, empty subscription for a secret (or endpoints) that it already asked for when a
        listener or cluster changes, without a new request; nothing would arrive and the new listener would go active
        without a certificate. So what the pushed resources name is sent again. Looking for the name in the serialised
        parent needs no schema; a false hit costs one spare push."""
        if not parents:
            return
        text = b"\0".join(parents)
        for type_url in CHILDREN:
            if (child := self._channels.get(type_url)) is not None:
                child.forced.update(n for n in child.sent if n in child.view and n.encode() in text)

    # ---- about

    @property
    def subscriptions(self) -> Iterable[tuple[str, int]]:
        """How many names are asked for, by type URL; a wildcard counts as one."""
        for type_url, channel in self._channels.items():
            yield type_url, len(channel.subscription.names) + channel.subscription.wildcard

    def is_current(self, type_url: str) -> bool:
        """Whether the client holds what it asked for of a type, as it is in the view; true if it asked for nothing."""
        channel = self._channels.get(type_url)
        return channel is None or channel.is_current()

    @property
    def status(self) -> Mapping[str, TypeStatus]:
        """Where the client stands, by type URL: a plain value, without any content."""
        return {type_url: channel.status for type_url, channel in self._channels.items()}
