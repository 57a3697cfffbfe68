# SPDX-License-Identifier: Apache-2.0
"""Arbitrary HTTP/2 on the worker's local sockets: frames of the fuzzer's choice to SDS and the Workload API.

The rule: nothing is raised, no call and no stream is left behind when the connection is gone, and the Workload API
gives no private key to a caller without the security header. The input is a script (see fuzz_http2): each instruction
is a byte that chooses a frame and takes its arguments from what follows.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec
from hpack import Encoder

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.local_connection import Calls, LocalProtocol, Shared
from enclave_proxy.local_counters import LocalCounters
from enclave_proxy.local_peer import Peer
from enclave_proxy.sds_service import SERVICE as SDS
from enclave_proxy.workload_api import SERVICE as WORKLOAD
from sds.material import TrustBundle
from sds.wire.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest
from tests.fuzz.driver import run
from tests.kit.local_socket import sds, workload
from tests.kit.pki import marble, shared_ca

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
PATHS = (
    f"{SDS}/StreamSecrets", f"{SDS}/DeltaSecrets", f"{SDS}/FetchSecrets", "/", "*", "",
    f"{WORKLOAD}/FetchX509SVID", f"{WORKLOAD}/FetchX509Bundles", f"{WORKLOAD}/FetchJWTSVID",
)  # fmt: skip
MESSAGES = (
    b"",
    DiscoveryRequest(resource_names=["default", "ROOTCA", "ALL", "nobody"]).SerializeToString(),
    DeltaDiscoveryRequest(resource_names_subscribe=["default", "*"]).SerializeToString(),
    DiscoveryRequest(type_url="another").SerializeToString(),
    b"\x0a\x05x",
)


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


@cache
def store() -> IdentityStore:
    ca = shared_ca()
    return IdentityStore(Credentials(marble(ca), ca.bundle, TrustBundle(ca.chain_pem)))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def request(stream: int, argument: int, *, header: bool) -> bytes:
    paths = PATHS if header else PATHS[2:]  # SDS gives keys without it, as SDS does
    fields = [
        (":method", "GET" if argument > 250 else "POST"),
        (":scheme", "http"),
        (":path", paths[argument % len(paths)]),
        *([] if argument == 199 else [(":authority", "x")]),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    if header:
        fields.append(("workload.spiffe.io", "true"))
    if argument > 200:
        fields.append(("grpc-timeout", f"{argument}m"))
    return frame(HEADERS, 4, stream, Encoder().encode(fields))


def message(stream: int, argument: int) -> bytes:
    body = MESSAGES[argument % len(MESSAGES)]
    length = len(body) if argument < 200 else argument << 20
    return frame(DATA, argument & 1, stream, b"\0" + length.to_bytes(4, "big") + body)


def script(data: bytes, *, header: bool) -> bytes:
    """Frames for the instructions in `data`."""
    out = bytearray()
    position = 0
    while position + 3 <= len(data):
        kind, stream, argument = data[position], data[position + 1] % 32 | 1, data[position + 2]
        position += 3
        match kind % 9:
            case 0 | 1:
                out += request(stream, argument, header=header)
            case 2 | 3:
                out += message(stream, argument)
            case 4:
                out += frame(RST, 0, stream, argument.to_bytes(4, "big"))
            case 5:
                out += frame(SETTINGS, argument & 1, 0, bytes([0, argument % 8, 0, 0, argument, stream]))
            case 6:
                out += frame(WINDOW, 0, stream, (argument << 20).to_bytes(4, "big"))
            case 7:
                out += frame(argument, kind, stream, data[position : position + 9])
            case _:
                out += data[position : position + argument % 16]
                position += argument % 16
    return bytes(out)


async def into_connection(data: bytes) -> bytes:
    """Everything that the server wrote."""
    bugs: list[BaseException] = []
    counters = LocalCounters("fuzz")
    shared = Shared({**sds(store().view), **workload(store())}, counters, bugs.append, max_calls=8)
    calls = Calls(shared, Peer(None))
    protocol = LocalProtocol(calls, lambda _: None, lambda: None)
    wire = Wire()
    protocol.connection_made(wire)
    for start in range(0, len(data), 1000):
        if wire.closed:
            break
        protocol.data_received(data[start : start + 1000])
        for _ in range(10):
            await asyncio.sleep(0)
    protocol.connection_lost(None)
    await calls.wait_closed()
    assert not bugs, bugs
    assert not protocol.open_streams
    assert counters.streams.total() == 0
    return bytes(wire.written)


@cache
def key() -> bytes:
    """A part of the private key as the Workload API gives it: the secret number itself."""
    private = store().credentials.identity.key.load()
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return private.private_numbers().private_value.to_bytes(private.key_size // 8, "big")


@cache
def loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def fuzz_one(data: bytes) -> None:
    settings = PREFACE + frame(SETTINGS, 0, 0)
    loop().run_until_complete(into_connection(settings + script(data, header=True)))
    written = loop().run_until_complete(into_connection(settings + script(data, header=False)))
    assert key() not in written


SEEDS = (bytes([0, 1, 6, 2, 1, 0]), bytes([0, 1, 0, 2, 1, 1]), bytes([0, 1, 1, 2, 1, 2, 4, 1, 0, 0, 3, 7, 2, 3, 0]))

if __name__ == "__main__":
    logging.getLogger("grpclib.server").setLevel(logging.CRITICAL)  # as the worker does
    run(fuzz_one, SEEDS)
