# SPDX-License-Identifier: Apache-2.0
"""Arbitrary bytes at both ends of discovery, while the view changes: servers refuse with ProtocolError or stay in
order, clients likewise. Whatever is said, nobody is sent

- a validation context without a CA, although some are put before the gate that all secrets pass;
- anything that its own view does not hold, above all nothing of another identity;

and no key is in anything that is kept or shown of it: receipts, errors, status.

The input is a list of steps: a byte for the kind, then two bytes of size and a message, or one byte that says which
view comes or how many responses are taken. Run: `python -m tests.fuzz.fuzz_discovery`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum

from google.protobuf.message import Message

from sds.discovery import DeltaStream, ProtocolError, SotwStream, Stream, View, redact
from sds.discovery_client import DeltaClient
from sds.material import Identity, TrustBundle, check_bundle
from sds.publish_gate import PublishGate
from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET, Resource, bundle_secret, identity_secret
from sds.spiffe_validator import spiffe_validator_secret
from sds.wire import discovery_pb2
from sds.wire import secret_pb2 as pb
from tests.fuzz.driver import run
from tests.kit.discovery import view
from tests.kit.pki import HOUR, marble, now, other_ca, shared_ca
from tests.kit.secrets import certificate, joined, secret, trust, validator


class Step(IntEnum):
    """What a byte of the input asks for."""

    MESSAGE, CHANGE, TAKE, RETRY = range(4)


@dataclass(frozen=True)
class Party:
    """One client: its identity, and the views that it goes through, with what a gate has to stop."""

    identity: Identity
    views: tuple[View, ...]


@functools.cache
def parties() -> tuple[Party, Party]:
    return _party(marble(shared_ca())), _party(marble(shared_ca()))


def _party(identity: Identity) -> Party:
    ca, other, name = shared_ca(), other_ca(), str(identity.spiffe_id)
    domain, stranger = identity.spiffe_id.trust_domain, marble(shared_ca())
    expired = marble(ca, at=now() - 3 * HOUR, lifetime=timedelta(hours=1))
    good = [identity_secret("default", identity), identity_secret(name, identity), bundle_secret("ROOTCA", ca.bundle)]
    good += [bundle_secret(f"spiffe://{domain}", ca.bundle), spiffe_validator_secret("ALL", {domain: ca.bundle})]
    both = TrustBundle(ca.bundle.pem + other.bundle.pem)
    wanted: list[list[Resource]] = [
        good,
        [*good[:2], bundle_secret("ROOTCA", both), secret("ALL", validator((domain, both.pem)))],
        [*good, secret("ROOTCA", trust(None)), secret("default", trust(None))],
        [*good, secret("ROOTCA", trust(b"")), secret("ALL", validator())],
        [*good, secret("ROOTCA", trust(joined([identity.leaf]))), secret("x", trust(None))],
        [*good, secret("default", certificate(identity, key=stranger.key.pem)), identity_secret(name, stranger)],
        [*good, identity_secret("default", expired), secret("ROOTCA", trust(ca.bundle.pem, crl=b"garbage"))],
        [],
    ]
    gate = PublishGate(now)
    routes = view(CDS={"c": "1 e default"}, EDS={"e": "1"}, LDS={"l": "1 default ROOTCA"})
    later = view(CDS={"d": "2 e"}, EDS={"e": "2", "f": "1"}, LDS={"l": "2 ALL", "m": "1"})
    views = []
    for number, resources in enumerate(wanted):
        let_out = gate.let_out(("one",), {resource.name: resource for resource in resources})
        views.append({**(later if number % 2 else routes), SECRET: let_out})
    return Party(identity, tuple(views))


# ---- the input


def seeds() -> list[bytes]:
    """A normal conversation of each variant, with a client that repeats what it was given."""
    me = parties()[0].identity
    leak = me.key.pem.decode()
    sotw: list[Message] = [
        discovery_pb2.DiscoveryRequest(type_url=CLUSTER, node={"id": "f"}),
        discovery_pb2.DiscoveryRequest(type_url=LISTENER),
        discovery_pb2.DiscoveryRequest(type_url=SECRET, resource_names=["default", "ROOTCA", "missing"]),
        discovery_pb2.DiscoveryRequest(
            type_url=SECRET, response_nonce="n3", error_detail={"code": 13, "message": leak}
        ),
        discovery_pb2.DiscoveryRequest(type_url=CLUSTER, response_nonce="n1", resource_names=["*", "c"]),
    ]
    delta: list[Message] = [
        discovery_pb2.DeltaDiscoveryRequest(type_url=CLUSTER, initial_resource_versions={"c": "0", "x": "1"}),
        discovery_pb2.DeltaDiscoveryRequest(type_url=SECRET, resource_names_subscribe=["ALL", "*", str(me.spiffe_id)]),
        discovery_pb2.DeltaDiscoveryRequest(type_url=ENDPOINT, resource_names_subscribe=["e"]),
        discovery_pb2.DeltaDiscoveryRequest(
            type_url=SECRET,
            resource_names_unsubscribe=["default"],
            response_nonce="n2",
            error_detail={"code": 13, "message": leak.replace("\n", "\\n")},
        ),
    ]
    return [b"".join(_conversation(messages)) for messages in (sotw, delta)]


def _conversation(messages: list[Message]) -> Iterator[bytes]:
    for number, message in enumerate(messages):
        body = message.SerializeToString()
        yield bytes((Step.MESSAGE,)) + len(body).to_bytes(2, "big") + body
        yield bytes((Step.TAKE, 4, Step.CHANGE, number + 1, Step.TAKE, 4))
    yield bytes((Step.RETRY, 0, Step.TAKE, 4))


def _steps(data: bytes) -> Iterator[tuple[Step, int, bytes]]:
    while len(data) > 1:
        if (kind := Step(data[0] % 4)) is Step.MESSAGE:
            size = int.from_bytes(data[1:3], "big")
            yield kind, 0, data[3 : 3 + size]
            data = data[3 + size :]
        else:
            yield kind, data[1], b""
            data = data[2:]


# ---- what must hold


class Client:
    """One client's stream, and what it may be sent: every content that was ever in its view."""

    def __init__(self, kind: type[Stream], party: Party) -> None:
        self.stream = kind(identifier="f", nonce_prefix="n")
        self._views = party.views
        self._allowed: set[tuple[str, str, bytes]] = set()
        self._waiting = 0
        self.change(0)

    def change(self, number: int) -> None:
        chosen = self._views[number % len(self._views)]
        self._allowed |= {(t, r.name, r.body) for t, named in chosen.items() for r in named.values()}
        self.stream.update(chosen)

    def receive(self, data: bytes) -> None:
        try:
            _no_key(self.stream.receive_bytes(data).error)
        except ProtocolError as e:
            _no_key(str(e))
            raise

    def take(self) -> bool:
        if (response := self.stream.take_response()) is None:
            return False
        for type_url, name, body in _resources(self.stream, response.body):
            assert (type_url, name, body) in self._allowed, f"{name} was never this client's to see"
            if type_url == SECRET:
                _trusts_somebody(body)
        return True

    def look(self) -> None:
        for status in self.stream.status.values():
            _no_key(status.error)
            for versions in (status.sent, status.acked, status.nacked, status.current):
                _no_key(" ".join(versions.values()))


def _resources(stream: Stream, body: bytes) -> Iterator[tuple[str, str, bytes]]:
    if isinstance(stream, DeltaStream):
        for item in discovery_pb2.DeltaDiscoveryResponse.FromString(body).resources:
            yield item.resource.type_url, item.name, item.resource.value
        return
    for packed in discovery_pb2.DiscoveryResponse.FromString(body).resources:
        name = pb.Secret.FromString(packed.value).name if packed.type_url == SECRET else _name(packed.value)
        yield packed.type_url, name, packed.value


def _name(body: bytes) -> str:
    return body.partition(b"@")[0].decode()


@functools.lru_cache(maxsize=64)
def _trusts_somebody(body: bytes) -> None:
    message = pb.Secret.FromString(body)
    if not message.HasField("validation_context"):
        return
    context = message.validation_context
    pems = [context.trusted_ca.inline_bytes]
    if context.HasField("custom_validator_config"):
        config = pb.SpiffeCertValidatorConfig.FromString(context.custom_validator_config.typed_config.value)
        pems = [domain.trust_bundle.inline_bytes for domain in config.trust_domains]
    assert pems, "a validator without trust domains"
    for pem in pems:
        check_bundle(TrustBundle(pem), now())


@functools.cache
def _parts_of_keys() -> frozenset[str]:
    """Every 24 characters of a key in base64: less is let through, see `discovery_redaction`."""
    found: set[str] = set()
    for party in parties():
        body = b"".join(party.identity.key.pem.splitlines()[1:-1]).decode()
        found.update(body[at : at + 24] for at in range(len(body) - 23))
    return frozenset(part for part in found if any(c in "0123456789+=" for c in part))


def _no_key(text: str) -> None:
    assert not any(text[at : at + 24] in _parts_of_keys() for at in range(len(text) - 23)), "part of a key"


def fuzz_one(data: bytes) -> None:
    """Must return: anything but ProtocolError is a bug."""
    for party in parties():
        for kind in (SotwStream, DeltaStream):
            with contextlib.suppress(ProtocolError):
                _serve(Client(kind, party), data)
    _listen(data)
    clean = redact(data.decode("latin-1"))
    assert len(clean) <= 256
    assert clean.isprintable()
    _no_key(clean)


def _serve(client: Client, data: bytes) -> None:
    for kind, argument, message in _steps(data):
        match kind:
            case Step.MESSAGE:
                client.receive(message)
            case Step.CHANGE:
                client.change(argument)
            case Step.TAKE:
                for _ in range(argument % 8):
                    if not client.take():
                        break
            case Step.RETRY:
                client.stream.retry_refused()
        client.look()


def _listen(data: bytes) -> None:
    client = DeltaClient(discovery_pb2.Node(id="f"))
    client.subscribe(SECRET, ["*"])
    client.connected()
    for kind, _, message in _steps(data):
        if kind is Step.MESSAGE:
            with contextlib.suppress(ProtocolError):
                client.ack(client.receive_bytes(message))


if __name__ == "__main__":
    run(fuzz_one, seeds())
