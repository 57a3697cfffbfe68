# SPDX-License-Identifier: Apache-2.0
"""The messages between linkerd2-proxy and its control plane (linkerd2-proxy-api 0.20), as far as a TCP mesh needs them.

By hand: the published definitions bring a Timestamp of their own that collides with protobuf's in one process. Field
numbers are those of io.linkerd.proxy.{identity,destination,inbound}; unknown fields are skipped.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from grpclib.encoding.base import CodecBase

CERTIFY = "/io.linkerd.proxy.identity.Identity/Certify"
GET_PROFILE = "/io.linkerd.proxy.destination.Destination/GetProfile"
WATCH_OUTBOUND = "/io.linkerd.proxy.outbound.OutboundPolicies/Watch"
WATCH_PORT = "/io.linkerd.proxy.inbound.InboundServerPolicies/WatchPort"

_VARINT, _LENGTH, _FIXED32 = 0, 2, 5
Value = int | str | bytes | None
Fields = dict[int, list[int | bytes]]


class RawCodec(CodecBase):
    """For grpclib: messages are bytes."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: object) -> bytes:
        return message

    def decode(self, data: bytes, message_type: object) -> bytes:
        return data


class Fixed32(int):
    """An integer that goes as four bytes."""


def encode(*fields: tuple[int, Value]) -> bytes:
    """A message of these fields in this order. None is left out; an empty message is b""."""
    out = bytearray()
    for number, value in fields:
        match value:
            case None:
                continue
            case Fixed32():
                out += _varint(number << 3 | _FIXED32) + value.to_bytes(4, "little")
            case int():
                out += _varint(number << 3 | _VARINT) + _varint(value)
            case _:
                data = value.encode() if isinstance(value, str) else value
                out += _varint(number << 3 | _LENGTH) + _varint(len(data)) + data
    return bytes(out)


def decode(data: bytes) -> Fields:
    """The fields of a message; raises ValueError if it is none."""
    found: Fields = {}
    for number, value in _fields(data):
        found.setdefault(number, []).append(value)
    return found


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        value: int | bytes
        match key & 7:
            case 0:
                value, at = _read_varint(data, at)
            case 1 | 2 | 5 as kind:
                size = {1: 8, 5: 4}.get(kind, 0)
                if kind == _LENGTH:
                    size, at = _read_varint(data, at)
                if at + size > len(data):
                    raise ValueError("truncated message")
                value = data[at : at + size]
                at += size
            case kind:
                raise ValueError(f"wire type {kind}")
        yield key >> 3, value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("bad number")


def text(fields: Fields, number: int) -> str:
    return blob(fields, number).decode()


def blob(fields: Fields, number: int) -> bytes:
    value = fields.get(number, [b""])[-1]
    if not isinstance(value, bytes):
        raise ValueError(f"field {number} is a number")
    return value


def number(fields: Fields, which: int) -> int:
    value = fields.get(which, [0])[-1]
    if not isinstance(value, int):
        raise ValueError(f"field {which} is no number")
    return value


@dataclass(frozen=True, slots=True)
class CertifyRequest:
    identity: str
    token: bytes
    csr: bytes  # DER

    def encode(self) -> bytes:
        return encode((1, self.identity), (2, self.token), (3, self.csr))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        fields = decode(data)
        return cls(text(fields, 1), blob(fields, 2), blob(fields, 3))


@dataclass(frozen=True, slots=True)
class CertifyResponse:
    leaf: bytes  # DER, as the intermediates
    intermediates: tuple[bytes, ...]
    valid_until: int  # seconds since the epoch

    def encode(self) -> bytes:
        middle = [(2, certificate) for certificate in self.intermediates]
        return encode((1, self.leaf), *middle, (3, encode((1, self.valid_until))))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        fields = decode(data)
        middle = tuple(item for item in fields.get(2, []) if isinstance(item, bytes))
        return cls(blob(fields, 1), middle, number(decode(blob(fields, 3)), 1))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection goes (WeightedAddr). `identity`: the mesh identity to expect, None: no mesh TLS.
    `transport_port`: dial this port and announce the real one in a transport header."""

    ip: str
    port: int
    identity: str | None = None
    opaque: bool = False
    transport_port: int | None = None

    def encode(self) -> bytes:
        address = encode((1, _ip(self.ip)), (2, self.port))
        name = None if self.identity is None else encode((1, self.identity))
        identity = None if name is None else encode((1, name), (4, name))
        transport = None if self.transport_port is None else encode((1, self.transport_port))
        hint = encode((3, b"" if self.opaque else None), (2, transport)) or None
        return encode((1, address), (3, 10000), (5, identity), (6, hint))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        fields = decode(data)
        address, hint = decode(blob(fields, 1)), decode(blob(fields, 6))
        identity = decode(blob(fields, 5))
        name = text(decode(blob(identity, 1)), 1) if 1 in identity else None
        transport = number(decode(blob(hint, 2)), 1) if 2 in hint else None
        return cls(_read_ip(blob(address, 1)), number(address, 2), name, 3 in hint, transport)


@dataclass(frozen=True, slots=True)
class Profile:
    """DestinationProfile; without an endpoint nothing is known of the destination."""

    opaque: bool = False
    endpoint: Endpoint | None = None

    def encode(self) -> bytes:
        return encode((4, 1 if self.opaque else None), (6, self.endpoint.encode() if self.endpoint else None))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        fields = decode(data)
        return cls(number(fields, 4) == 1, Endpoint.decode(blob(fields, 6)) if 6 in fields else None)


@dataclass(frozen=True, slots=True)
class ServerPolicy:
    """What an inbound port does (inbound.Server), for clients of any network. `allowed`: nobody, anybody, or anybody
    with a mesh identity. `kind` and `name` are the labels of the policy's resource."""

    protocol: str  # detect, opaque, tls
    allowed: str  # none, any, authenticated
    detect_seconds: int = 10
    kind: str = "default"
    name: str = "all-unauthenticated"

    def encode(self) -> bytes:
        duration = encode((1, self.detect_seconds))
        protocol = {
            "detect": encode((1, encode((1, duration)))),
            "opaque": encode((2, b"")),
            "tls": encode((3, b"")),
        }[self.protocol]
        labels = [_label("group", ""), _label("kind", self.kind), _label("name", self.name)]
        return encode((1, protocol), (3, self._authorization()), *((4, label) for label in labels))

    def _authorization(self) -> bytes | None:
        if self.allowed == "none":
            return None
        everywhere = [encode((1, encode((1, encode((1, _ip(ip)))), (2, 0)))) for ip in ("0.0.0.0", "::")]
        any_identity = encode((2, encode((2, encode((2, b""))))))  # one suffix without parts: every identity
        authentication = encode((1, b"")) if self.allowed == "any" else any_identity
        labels = [_label("group", ""), _label("kind", "default"), _label("name", self.name)]
        networks = [(1, network) for network in everywhere]
        metadata = encode((1, self.name))
        return encode(*networks, (2, authentication), *((3, label) for label in labels), (4, metadata))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        fields = decode(data)
        kinds = {1: "detect", 2: "opaque", 3: "tls"}
        protocol = decode(blob(fields, 1))
        found = next((name for number_, name in kinds.items() if number_ in protocol), None)
        if found is None:
            raise ValueError("a policy for HTTP")
        allowed = "none"
        for authorization in fields.get(3, []):
            assert isinstance(authorization, bytes)
            allowed = "any" if 1 in decode(blob(decode(authorization), 2)) else "authenticated"
        labels = dict(_read_label(label) for label in fields.get(4, []) if isinstance(label, bytes))
        seconds = number(decode(blob(decode(blob(protocol, 1)), 1)), 1)
        return cls(found, allowed, seconds, labels.get("kind", ""), labels.get("name", ""))


def _ip(address: str) -> bytes:
    """IPAddress: IPv4 as a number, IPv6 as two."""
    value = ipaddress.ip_address(address)
    if value.version == 4:
        return encode((1, Fixed32(int(value))))
    halves = int(value) >> 64, int(value) & (2**64 - 1)
    return encode(
        (
            2,
            b"".join(
                bytes([which << 3 | 1]) + half.to_bytes(8, "little") for which, half in zip((1, 2), halves, strict=True)
            ),
        )
    )


def _read_ip(data: bytes) -> str:
    fields = decode(data)
    if 1 in fields:
        return str(ipaddress.IPv4Address(int.from_bytes(blob(fields, 1), "little")))
    halves = decode(blob(fields, 2))
    first, last = (int.from_bytes(blob(halves, which), "little") for which in (1, 2))
    return str(ipaddress.IPv6Address(first << 64 | last))


def _label(name: str, value: str) -> bytes:
    return encode((1, name), (2, value))


def _read_label(data: bytes) -> tuple[str, str]:
    fields = decode(data)
    return text(fields, 1), text(fields, 2)
