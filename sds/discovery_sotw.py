# SPDX-License-Identifier: Apache-2.0
"""State of the world: a request names all that the client wants, a listener or cluster response is all there is.

Rules (xDS protocol, "Basic Protocol Overview"): a request that answers an older response is neither ACK nor NACK, but
its names are the client's newest wish. A repeated request (same names, newest nonce, already answered) asks for the
content again. An empty response deletes all listeners or clusters, and is a no-op for other types. That a name does
not exist is said in `resource_errors` (xDS TP3), which other clients ignore; it is sent when it appears.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from google.protobuf.message import Message

from sds import discovery_wire as wire
from sds.discovery_channel import Channel
from sds.discovery_stream import Batch, Stream, absences
from sds.discovery_types import Kind, Receipt
from sds.resources import LISTENER, Resource
from sds.wire import discovery_pb2


class SotwStream(Stream):
    """Server side of a `Stream...` method."""

    __slots__ = ()

    isolates: ClassVar[bool] = False
    request_class: ClassVar[type[Message]] = discovery_pb2.DiscoveryRequest

    def receive(self, request: Message) -> Receipt:
        if not isinstance(request, discovery_pb2.DiscoveryRequest):
            raise TypeError(f"expected a DiscoveryRequest, got {type(request).__name__}")
        self._meet(request)
        channel, first = self._channel(request.type_url)
        # The first request after a reconnect may still carry the nonce of the stream before: a plain subscription.
        receipt = self._judge(channel, "" if first else request.response_nonce, request)
        change = channel.subscription.replace(request.resource_names, len(channel.view))
        if change:
            self._check_total()
            channel.follow(change)
            channel.ask(change.added)
        elif receipt.kind is Kind.SUBSCRIBE and not channel.full_state:
            channel.ask(channel.subscription.names)
            channel.ask_known()
        if channel.full_state:
            channel.answer_owed |= first or bool(change)
        channel.check_asked()
        return self._counted(channel, receipt, change.added) if change.added else receipt

    def _due(self, channel: Channel) -> Batch | None:
        due, missing = channel.changes(), channel.missing()
        if not channel.full_state:
            return Batch(channel, channel.batch(due), missing) if due or missing else None
        gone = channel.removals() if self._may_break(channel) else ()
        if due or missing or channel.answer_owed or (gone and channel.type_url == LISTENER):
            return Batch(channel, due, sorted({*gone, *missing}))
        return None

    def _breaking(self, channel: Channel) -> Batch | None:
        gone = channel.removals()
        if not gone or (channel.changes() and self._must_wait(channel)):  # a state holds the changes too
            return None
        return Batch(channel, channel.changes(), gone)

    def _encode(self, batch: Batch, nonce: str, absent: Sequence[tuple[str, int]]) -> bytes:
        channel = batch.channel
        content: Mapping[str, Resource] = {name: channel.view[name] for name in batch.names}
        if channel.full_state:
            content = channel.bodies = _whole_state(channel, batch.gone)
        parts = [
            wire.state_start(self._identifier, channel.type_url),
            wire.nonce(nonce),
            wire.state_version(_version(content)),
        ]
        if absent:
            rest = discovery_pb2.DiscoveryResponse(resource_errors=absences(absent))
            parts.append(rest.SerializeToString())
        for _, resource in sorted(content.items()):
            parts += (resource.in_state, resource.body)
        return b"".join(parts)

    def _carried(self, batch: Batch) -> Iterable[str]:
        channel = batch.channel
        return [name for name in channel.bodies if name in channel.view] if channel.full_state else batch.names


def _whole_state(channel: Channel, gone: Sequence[str]) -> Mapping[str, Resource]:
    """Everything subscribed, and what is gone but may not go yet."""
    covers, view = channel.subscription.covers, channel.view
    held = {n: r for n, r in channel.bodies.items() if n not in view and n not in gone and covers(n)}
    if channel.subscription.wildcard and not held:
        return view
    return {name: resource for name, resource in view.items() if covers(name)} | held


def _version(content: Mapping[str, Resource]) -> str:
    """Names the content of a response; the same content has the same version in every stream and process."""
    if len(content) == 1:
        return next(iter(content.values())).version
    digest = hashlib.sha256()
    for name, resource in sorted(content.items()):
        digest.update(f"{len(name)}:{name}{resource.version}".encode())
    return digest.hexdigest()[:16]
