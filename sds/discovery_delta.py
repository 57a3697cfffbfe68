# SPDX-License-Identifier: Apache-2.0
"""Incremental: requests change the subscription, responses carry what changed, every resource has its own version.

Rules (xDS protocol, "Incremental xDS"): changes of the subscription count whatever nonce they come with. Every name
that is subscribed to is answered, known or not; what does not exist is answered at once (`removed_resources`, and
`resource_errors` to say why) and stays subscribed. In the first message of a type on a reconnected stream the client
says what it holds: for listeners and clusters an equal version is not sent again, endpoints and secrets always are,
because a client may hold a version and still wait for it (a listener that changed meanwhile).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import ClassVar

from google.protobuf.message import Message

from sds import discovery_wire as wire
from sds.discovery_channel import Channel
from sds.discovery_stream import Batch, Stream, absences
from sds.discovery_subscription import WILDCARD, check_count, check_names
from sds.discovery_types import FULL_STATE, MAX_NAMES, NEVER_REMOVED, Receipt
from sds.resources import LISTENER
from sds.wire import discovery_pb2


class DeltaStream(Stream):
    """Server side of a `Delta...` method."""

    __slots__ = ()

    isolates: ClassVar[bool] = True
    request_class: ClassVar[type[Message]] = discovery_pb2.DeltaDiscoveryRequest

    def receive(self, request: Message) -> Receipt:
        if not isinstance(request, discovery_pb2.DeltaDiscoveryRequest):
            raise TypeError(f"expected a DeltaDiscoveryRequest, got {type(request).__name__}")
        self._meet(request)
        channel, first = self._channel(request.type_url)
        receipt = self._judge(channel, "" if first else request.response_nonce, request)
        subscribe, unsubscribe = request.resource_names_subscribe, request.resource_names_unsubscribe
        if first or subscribe or unsubscribe:
            self._subscribe(channel, subscribe, unsubscribe, request.initial_resource_versions if first else None)
        return self._counted(channel, receipt, subscribe) if subscribe else receipt

    def _subscribe(
        self, channel: Channel, subscribe: Sequence[str], unsubscribe: Sequence[str], held: Mapping[str, str] | None
    ) -> None:
        """`held`: in the first message of a type, what the client says that it has."""
        first = held is not None
        check_count(subscribe, MAX_NAMES + len(channel.view))
        subscribe = list(subscribe)  # the message makes other strings each time that it is asked
        change = channel.subscription.change(subscribe, unsubscribe, len(channel.view), first=first)
        self._check_total()
        channel.follow(change)
        if held is not None:
            check_count(held, MAX_NAMES + 2 * len(channel.view))
            check_names(held)
            channel.hold(held)
            channel.answer_owed = channel.subscription.wildcard
        self._owe(channel, subscribe, change.dropped, first=first)
        channel.check_asked()

    @staticmethod
    def _owe(channel: Channel, subscribe: Sequence[str], dropped: AbstractSet[str], *, first: bool) -> None:
        """Names that must be answered: subscribed ones, and dropped ones that a wildcard still covers."""
        believed = first and channel.type_url in FULL_STATE
        asked = [name for name in subscribe if name in channel.subscription.names]
        channel.ask([name for name in asked if not (believed and channel.holds_current(name))])
        if not channel.subscription.wildcard:
            return
        channel.ask(dropped)
        if WILDCARD in subscribe and not first:
            channel.ask_known()
            channel.answer_owed = True
        elif first and not believed:
            channel.ask_known()

    def _due(self, channel: Channel) -> Batch | None:
        due = channel.changes()
        # A listener that is gone goes at once; other types first wait until nothing points at them.
        gone = channel.missing()
        if channel.type_url == LISTENER and channel.removals():
            gone = sorted({*gone, *channel.removals()})
        if not due and not gone and not channel.answer_owed:
            return None
        if channel.isolating and gone:
            return Batch(channel, (), gone)
        return Batch(channel, channel.batch(due), gone)

    def _breaking(self, channel: Channel) -> Batch | None:
        gone = channel.removals()
        return Batch(channel, (), gone) if gone else None

    def _encode(self, batch: Batch, nonce: str, absent: Sequence[tuple[str, int]]) -> bytes:
        channel = batch.channel
        parts = [wire.delta_start(self._identifier, channel.type_url), wire.nonce(nonce)]
        if batch.gone:
            removed = () if channel.type_url in NEVER_REMOVED else batch.gone
            rest = discovery_pb2.DeltaDiscoveryResponse(removed_resources=removed, resource_errors=absences(absent))
            parts.append(rest.SerializeToString())
        for name in batch.names:
            resource = channel.view[name]
            parts += (resource.in_delta, resource.body)
        return b"".join(parts)
