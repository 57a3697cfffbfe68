# SPDX-License-Identifier: Apache-2.0
"""Incremental: requests change the subscription, responses carry what changed, every resource has its own version.

Rules (xDS protocol, "Incremental xDS"): changes of the subscription count whatever nonce they come with. Every name
that is subscribed to is answered, known or not; what does not exist is answered at once (`removed_resources`, and
`resource_errors` to say why) and stays subscribed. In the first message of a type on a reconnected stream the client
says what it holds: for listeners and clusters an equal version is not sent again, endpoints and secrets always are,
because a client may hold a version and still wait for it (a listener that changed meanwhile).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from google.protobuf.message import Message

from sds.discovery_channel import Channel
from sds.discovery_stream import Batch, Stream
from sds.discovery_subscription import WILDCARD, check_names
from sds.discovery_types import CHILDREN, MAX_NAME_BYTES, NOT_FOUND, PERMISSION_DENIED, ProtocolError, Receipt
from sds.resources import LISTENER
from sds.wire import discovery_pb2


class DeltaStream(Stream):
    """Server side of a `Delta...` method."""

    # A refused response is sent again in pieces, once, so that one bad resource does not hold back the others.
    isolates: ClassVar[bool] = True
    request_class: ClassVar[type[Message]] = discovery_pb2.DeltaDiscoveryRequest

    def receive(self, request: Message) -> Receipt:
        if not isinstance(request, discovery_pb2.DeltaDiscoveryRequest):
            raise TypeError(f"expected a DeltaDiscoveryRequest, got {type(request).__name__}")
        if request.HasField("node"):
            self._meet(request.node)
        channel, first = self._channel(request.type_url)
        error = request.error_detail if request.HasField("error_detail") else None
        receipt = self._judge(channel, "" if first else request.response_nonce, error)
        subscribe = list(request.resource_names_subscribe)
        unsubscribe = list(request.resource_names_unsubscribe)
        channel.subscription.change(subscribe, unsubscribe, first=first)
        if unsubscribe:
            channel.forget_unwanted()
        if first:
            self._begin(channel, request)
        self._owe(channel, subscribe, unsubscribe, first=first)
        return self._counted(channel, receipt, subscribe) if subscribe else receipt

    def _begin(self, channel: Channel, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
        held = dict(request.initial_resource_versions)
        check_names(list(held))
        if any(len(version) > MAX_NAME_BYTES for version in held.values()):
            raise ProtocolError("INVALID_ARGUMENT", f"resource version of more than {MAX_NAME_BYTES} bytes")
        channel.hold(held)
        channel.answer_owed = channel.subscription.wildcard

    @staticmethod
    def _owe(channel: Channel, subscribe: Sequence[str], unsubscribe: Sequence[str], *, first: bool) -> None:
        """Names that must be answered: subscribed ones, and dropped ones that a wildcard still covers."""
        for name in subscribe:
            if name == WILDCARD or name not in channel.subscription.names:
                continue
            resource = channel.view.get(name)
            current = resource is not None and channel.sent.get(name) == resource.version
            if not (first and current and channel.type_url not in CHILDREN):
                channel.forced.add(name)
        if channel.subscription.wildcard:
            channel.forced.update(name for name in unsubscribe if name != WILDCARD)
            if WILDCARD in subscribe and not first:
                channel.force_known()
                channel.answer_owed = True
            elif first and channel.type_url in CHILDREN:
                channel.force_known()

    def _due(self, channel: Channel) -> Batch | None:
        due = channel.changes()
        # A listener that is gone goes at once; other types first wait until nothing points at them.
        gone = set(channel.missing())
        if channel.type_url == LISTENER:
            gone.update(channel.removals())
        if not due and not gone and not channel.answer_owed:
            return None
        if channel.isolating and gone:
            return channel, (), sorted(gone)
        return channel, channel.batch(due), sorted(gone)

    def _breaking(self, channel: Channel) -> Batch | None:
        gone = channel.removals()
        return (channel, (), gone) if gone else None

    def _encode(self, channel: Channel, names: Sequence[str], gone: Sequence[str], nonce: str) -> bytes:
        response = discovery_pb2.DeltaDiscoveryResponse(
            type_url=channel.type_url,
            nonce=nonce,
            control_plane=self._control_plane,
            removed_resources=gone,
        )
        for name in names:
            resource = channel.view[name]
            added = response.resources.add(name=name, version=resource.version)
            added.resource.type_url = resource.type_url
            added.resource.value = resource.body
        code = NOT_FOUND if self.is_entitled(channel.type_url) else PERMISSION_DENIED
        text = "does not exist" if code == NOT_FOUND else "this identity may not see resources of this type"
        for name in gone:
            # Errors belong to names that were asked for; to a wildcard a removal says it all.
            if name in channel.subscription.names:
                error = response.resource_errors.add()
                error.resource_name.name = name
                error.error_detail.code = code
                error.error_detail.message = text
        return response.SerializeToString()
