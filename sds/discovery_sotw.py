# SPDX-License-Identifier: Apache-2.0
"""State of the world: a request names all that the client wants, a listener or cluster response is all there is.

Rules (xDS protocol, "Basic Protocol Overview"): a request that answers an older response is neither ACK nor NACK, but
its names are the client's newest wish. A repeated request (same names, newest nonce, already ACKed) asks for the
content again. There is no not-found: a name that does not exist yet is answered when it appears. An empty response
deletes all listeners or clusters, and is a no-op for other types.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

from google.protobuf.message import Message

from sds.discovery_channel import Channel
from sds.discovery_stream import Batch, Stream
from sds.discovery_types import CHILDREN, Kind, Receipt
from sds.resources import LISTENER, Resource
from sds.wire import discovery_pb2


class SotwStream(Stream):
    """Server side of a `Stream...` method."""

    # A response is the state: it cannot be taken apart to find the resource that the client refuses.
    isolates: ClassVar[bool] = False
    request_class: ClassVar[type[Message]] = discovery_pb2.DiscoveryRequest

    def receive(self, request: Message) -> Receipt:
        if not isinstance(request, discovery_pb2.DiscoveryRequest):
            raise TypeError(f"expected a DiscoveryRequest, got {type(request).__name__}")
        if request.HasField("node"):
            self._meet(request.node)
        channel, first = self._channel(request.type_url)
        was_acked = channel.inflight is None
        error = request.error_detail if request.HasField("error_detail") else None
        # The first request after a reconnect may still carry the nonce of the stream before: a plain subscription.
        receipt = self._judge(channel, "" if first else request.response_nonce, error)
        before = (set(channel.subscription.names), channel.subscription.wildcard)
        added = channel.subscription.replace(request.resource_names)
        changed = before != (channel.subscription.names, channel.subscription.wildcard)
        if changed:
            channel.forget_unwanted()
        if channel.type_url in CHILDREN:
            channel.forced.update(name for name in added if name in channel.view)
            repeated = receipt.kind is Kind.SUBSCRIBE or (receipt.kind is Kind.ACK and was_acked)
            if repeated and not changed:
                channel.force_known()
        elif channel.holds_full_state:
            channel.answer_owed |= first or changed
        return self._counted(channel, receipt, added) if added else receipt

    def _due(self, channel: Channel) -> Batch | None:
        due = channel.changes()
        if channel.holds_full_state:
            gone = channel.removals() if self._may_break(channel) else []
            urgent = due or channel.answer_owed or (gone and channel.type_url == LISTENER)
            return (channel, due, gone) if urgent else None
        if due:
            return channel, channel.batch(due), ()
        return None

    def _breaking(self, channel: Channel) -> Batch | None:
        if not (gone := channel.removals()):
            return None
        if channel.holds_full_state:
            return channel, (), gone
        # Nothing can be said about it on the wire; forgotten, so that it is sent when it comes back.
        for name in gone:
            channel.sent.pop(name, None)
        return None

    def _encode(self, channel: Channel, names: Sequence[str], gone: Sequence[str], nonce: str) -> bytes:
        content = {name: channel.view[name] for name in names}
        if channel.holds_full_state:
            content = self._whole_state(channel, gone)
            channel.bodies = content
        response = discovery_pb2.DiscoveryResponse(
            version_info=_version(content),
            type_url=channel.type_url,
            nonce=nonce,
            control_plane=self._control_plane,
        )
        for resource in content.values():
            response.resources.add(type_url=resource.type_url, value=resource.body)
        return response.SerializeToString()

    @staticmethod
    def _whole_state(channel: Channel, gone: Sequence[str]) -> dict[str, Resource]:
        """Everything subscribed, and what is gone but may not go yet."""
        covers = channel.subscription.covers
        content = {name: resource for name, resource in channel.view.items() if covers(name)}
        held = {n: r for n, r in channel.bodies.items() if n not in channel.view and n not in gone and covers(n)}
        return dict(sorted((content | held).items()))


def _version(content: Mapping[str, Resource]) -> str:
    """Names the content of a response; the same content has the same version in every stream and process."""
    if len(content) == 1:
        return next(iter(content.values())).version
    digest = hashlib.sha256()
    for name, resource in content.items():
        digest.update(f"{len(name)}:{name}{resource.version}".encode())
    return digest.hexdigest()[:16]
