# SPDX-License-Identifier: Apache-2.0
"""Incremental discovery, client side: a pure state machine over an aggregated stream. No socket, no clock.

    client = DeltaClient(node)
    client.subscribe(LISTENER, ["*"])
    client.connected()                    # a new stream: says again what is wanted, and what is held already
    while body := client.take(): ...      # requests to write
    update = client.receive_bytes(data)   # what changed
    client.ack(update)  or  client.nack(update, "why not")

Until `ack` nothing of an update counts as held, so that after a NACK or a lost stream the server is told the truth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from sds.discovery_subscription import WILDCARD
from sds.discovery_types import INTERNAL, MAX_NAME_BYTES, ProtocolError
from sds.resources import Resource
from sds.wire import discovery_pb2

# What gRPC accepts by default; a server that needs more must send several responses.
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
MAX_REASON = 1024


@dataclass(frozen=True, slots=True)
class Update:
    """One response. `removed` names no longer exist (or never did); `errors` says why, for those that say so."""

    type_url: str
    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...]
    errors: Mapping[str, tuple[int, str]] = field(default_factory=dict, hash=False)


@dataclass(slots=True)
class _Type:
    wanted: set[str] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=dict)
    opened: bool = False  # the first request of this stream was made


class DeltaClient:
    """The client's end of `DeltaAggregatedResources`."""

    def __init__(self, node: discovery_pb2.Node) -> None:
        self._node = node
        self._types: dict[str, _Type] = {}
        self._out: deque[discovery_pb2.DeltaDiscoveryRequest] = deque()
        self._node_sent = False
        self._connected = False

    # ---- what is wanted

    def subscribe(self, type_url: str, names: Iterable[str]) -> None:
        """Want these names too; `*` is everything of the type. A name that is wanted already is asked for again."""
        state = self._types.setdefault(type_url, _Type())
        new = sorted(set(names))
        state.wanted.update(new)
        if state.opened and new:
            self._out.append(self._request(type_url, resource_names_subscribe=new))

    def unsubscribe(self, type_url: str, names: Iterable[str]) -> None:
        """Do not want these names any more, and forget what was held of them."""
        if (state := self._types.get(type_url)) is None:
            return
        dropped = sorted(state.wanted.intersection(names))
        state.wanted.difference_update(dropped)
        if WILDCARD not in state.wanted:
            for name in [name for name in state.held if name not in state.wanted]:
                del state.held[name]
        if state.opened and dropped:
            self._out.append(self._request(type_url, resource_names_unsubscribe=dropped))

    def want(self, type_url: str, names: Iterable[str]) -> None:
        """Make the subscription of a type exactly these names; says only what differs."""
        wanted = set(names)
        current = self.wanted(type_url)
        if added := wanted - current:
            self.subscribe(type_url, added)
        if dropped := current - wanted:
            self.unsubscribe(type_url, dropped)

    def wanted(self, type_url: str) -> frozenset[str]:
        """The names that are subscribed to."""
        state = self._types.get(type_url)
        return frozenset(state.wanted) if state else frozenset()

    def held(self, type_url: str) -> Mapping[str, str]:
        """What was acknowledged: version by name."""
        state = self._types.get(type_url)
        return dict(state.held) if state else {}

    def hold(self, resources: Iterable[Resource]) -> None:
        """These are in force already, from before this client: the server is told their versions, as after an `ack`."""
        for resource in resources:
            state = self._types.setdefault(resource.type_url, _Type())
            if WILDCARD in state.wanted or resource.name in state.wanted:
                state.held[resource.name] = resource.version

    # ---- the stream

    def connected(self) -> None:
        """A new stream begins: nothing that was said or left unsaid on the one before counts."""
        self._out.clear()
        self._node_sent = False
        self._connected = True
        for type_url, state in self._types.items():
            state.opened = False
            self._open(type_url, state)

    def _open(self, type_url: str, state: _Type) -> None:
        state.opened = True
        if state.wanted:
            request = self._request(type_url, resource_names_subscribe=sorted(state.wanted))
            request.initial_resource_versions.update(state.held)
            self._out.append(request)

    def take(self) -> bytes | None:
        """The next request to write, or None. The first one of a stream carries the node."""
        for type_url, state in self._types.items():
            if self._connected and not state.opened:
                self._open(type_url, state)
        if not self._out:
            return None
        request = self._out.popleft()
        if not self._node_sent:
            request.node.CopyFrom(self._node)
            self._node_sent = True
        return request.SerializeToString()

    def receive_bytes(self, data: bytes) -> Update:
        """Read one response. Every response must be answered with `ack` or `nack`.

        Raises ProtocolError if it is no valid response at all: then the server cannot be followed, end the stream.
        """
        if len(data) > MAX_RESPONSE_BYTES:
            raise ProtocolError("RESOURCE_EXHAUSTED", f"response of {len(data)} bytes, limit is {MAX_RESPONSE_BYTES}")
        response = discovery_pb2.DeltaDiscoveryResponse()
        try:
            response.ParseFromString(data)
        except DecodeError:
            raise ProtocolError("INVALID_ARGUMENT", "not a valid incremental discovery response") from None
        if response.type_url not in self._types:
            raise ProtocolError("INVALID_ARGUMENT", f"response of type {response.type_url!r}, which was not asked for")
        if not response.nonce:
            raise ProtocolError("INVALID_ARGUMENT", "response without a nonce")
        return Update(
            response.type_url,
            response.nonce,
            tuple(_resources(response)),
            tuple(response.removed_resources),
            {e.resource_name.name: (e.error_detail.code, e.error_detail.message) for e in response.resource_errors},
        )

    def ack(self, update: Update) -> None:
        """The update is applied."""
        state = self._types[update.type_url]
        everything = WILDCARD in state.wanted
        for resource in update.resources:
            if everything or resource.name in state.wanted:
                state.held[resource.name] = resource.version
        for name in update.removed:
            state.held.pop(name, None)
        self._out.append(self._request(update.type_url, response_nonce=update.nonce))

    def nack(self, update: Update, reason: str) -> None:
        """The update is not applied, nothing of it. `reason` goes to the server: name the rule, never quote content."""
        request = self._request(update.type_url, response_nonce=update.nonce)
        request.error_detail.code = INTERNAL
        request.error_detail.message = reason[:MAX_REASON]
        self._out.append(request)

    @staticmethod
    def _request(
        type_url: str,
        *,
        resource_names_subscribe: Iterable[str] = (),
        resource_names_unsubscribe: Iterable[str] = (),
        response_nonce: str = "",
    ) -> discovery_pb2.DeltaDiscoveryRequest:
        return discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url,
            resource_names_subscribe=resource_names_subscribe,
            resource_names_unsubscribe=resource_names_unsubscribe,
            response_nonce=response_nonce,
        )


def _resources(response: discovery_pb2.DeltaDiscoveryResponse) -> Iterable[Resource]:
    seen: set[str] = set()
    for item in response.resources:
        if item.resource.type_url != response.type_url:
            raise ProtocolError(
                "INVALID_ARGUMENT", f"resource of type {item.resource.type_url!r} in the wrong response"
            )
        if not item.name or len(item.name) > MAX_NAME_BYTES or item.name in seen:
            raise ProtocolError("INVALID_ARGUMENT", f"resource name {item.name[:80]!r} is empty, overlong or repeated")
        seen.add(item.name)
        yield Resource(response.type_url, item.name, item.version, item.resource.value)
