# SPDX-License-Identifier: Apache-2.0
"""Arbitrary bytes at both ends of discovery: servers refuse with ProtocolError or stay in order, clients likewise.

The input is a list of messages, each with two bytes of length in front. Run: `python -m tests.fuzz.fuzz_discovery`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sds.discovery import DeltaStream, ProtocolError, SotwStream, Stream
from sds.discovery_client import DeltaClient
from sds.discovery_redaction import redact
from sds.resources import CLUSTER, SECRET
from sds.wire import discovery_pb2
from tests.fuzz.driver import run
from tests.kit.discovery import view

VIEW = view(CDS={"c": "1 e"}, EDS={"e": "1"}, SDS={"default": "1", "ROOTCA": "1"}, LDS={"l": "1 default"})


def seeds() -> list[bytes]:
    """A normal conversation of each variant."""
    sotw = [
        discovery_pb2.DiscoveryRequest(type_url=CLUSTER),
        discovery_pb2.DiscoveryRequest(type_url=SECRET, resource_names=["default"]),
        discovery_pb2.DiscoveryRequest(
            type_url=CLUSTER, response_nonce="n1", error_detail={"code": 13, "message": "no"}
        ),
    ]
    delta = [
        discovery_pb2.DeltaDiscoveryRequest(type_url=CLUSTER, initial_resource_versions={"c": "0", "x": "1"}),
        discovery_pb2.DeltaDiscoveryRequest(type_url=SECRET, resource_names_subscribe=["default", "*"]),
        discovery_pb2.DeltaDiscoveryRequest(
            type_url=SECRET, resource_names_unsubscribe=["default"], response_nonce="n1", error_detail={"code": 13}
        ),
    ]
    return [b"".join(_framed(m.SerializeToString()) for m in messages) for messages in (sotw, delta)]


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(2, "big") + body


def _messages(data: bytes) -> Iterator[bytes]:
    while len(data) > 2:
        size = int.from_bytes(data[:2], "big")
        yield data[2 : 2 + size]
        data = data[2 + size :]


def fuzz_one(data: bytes) -> None:
    """Must return: anything but ProtocolError is a bug."""
    for stream in (SotwStream(identifier="f", nonce_prefix="n"), DeltaStream(identifier="f", nonce_prefix="n")):
        _serve(stream, data)
    client = DeltaClient(discovery_pb2.Node(id="f"))
    client.subscribe(SECRET, ["*"])
    client.connected()
    for message in _messages(data):
        with contextlib.suppress(ProtocolError):
            client.ack(client.receive_bytes(message))
    clean = redact(data.decode("latin-1"))
    if len(clean) > 256 or not clean.isprintable():
        raise AssertionError(f"not redacted: {clean!r}")


def _serve(stream: Stream, data: bytes) -> None:
    stream.update(VIEW)
    for number, message in enumerate(_messages(data)):
        try:
            stream.receive_bytes(message)
        except ProtocolError:
            return
        if number % 3 == 2:
            stream.update(VIEW if number % 2 else {})
        for _ in range(4):
            if stream.take() is None:
                break
        repr(stream.status)


if __name__ == "__main__":
    run(fuzz_one)
