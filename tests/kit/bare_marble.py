# SPDX-License-Identifier: Apache-2.0
"""A Marble without any library of ours: key, certificate and request by openssl, the call by curl, and the messages by
hand, field by field as the protocol numbers them.

curl 7 waits for ever if the answer comes before it has sent its whole request (RFC 9113, 8.1, allows that, and gRPC
clients are used to it): where a call is refused so early, `unary` makes it with grpclib, which carries bytes here.
"""

from __future__ import annotations

import asyncio
import ssl
import uuid as uuids
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError

from tests.kit.openssl_judge import openssl
from tests.kit.programs import program

ACTIVATE = "/rpc.Marble/Activate"
_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"
_USAGES = "keyUsage=critical,digitalSignature,keyAgreement"
_BOTH = "extendedKeyUsage=serverAuth,clientAuth"


@dataclass(frozen=True, slots=True)
class BareMarble:
    """`pem` holds key and self-signed certificate."""

    pem: Path
    csr: bytes

    @classmethod
    def make(cls, directory: Path, subject: str = "/", names: str = _NAMES) -> BareMarble:
        """As MarbleRun's Marbles make theirs: P-384, a life of 292 years; the request with an empty subject."""
        pem, key = directory / f"{uuids.uuid4()}.pem", directory / f"{uuids.uuid4()}.key"
        new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout", str(key))
        usage = [
            word
            for line in (_NAMES, _USAGES, _BOTH, "basicConstraints=critical,CA:FALSE")
            for word in ("-addext", line)
        ]
        certificate = openssl("req", "-x509", *new, "-subj", "/CN=MarbleRun Marble", "-days", "106751", *usage)
        pem.write_bytes(certificate + key.read_bytes())
        extensions = ("-addext", names) if names else ()
        request = openssl("req", "-new", "-key", str(key), "-subj", subject, *extensions, "-outform", "DER")
        return cls(pem, request)


@dataclass(frozen=True, slots=True)
class GrpcAnswer:
    """HTTP status, header and trailer fields by name, and the body."""

    http: str
    fields: dict[str, str]
    body: bytes

    @property
    def status(self) -> str:
        return self.fields.get("grpc-status", "")

    @property
    def message(self) -> str:
        """The text of a refusal: percent-encoded on the wire."""
        return unquote(self.fields.get("grpc-message", ""))

    @property
    def reply(self) -> bytes:
        """The one message of a unary answer."""
        assert self.status == "0", (self.fields, self.body)
        assert self.body[0] == 0
        assert int.from_bytes(self.body[1:5], "big") == len(self.body) - 5
        return self.body[5:]


async def call(
    port: int, pem: Path, message: bytes, path: str = ACTIVATE, fields: Sequence[str] = (), *, framed: bool = True
) -> GrpcAnswer:
    """One unary call by curl over HTTP/2."""
    headers = ["content-type: application/grpc", "te: trailers", *fields]
    flags = [word for header in headers for word in ("-H", header)]
    body = b"\0" + len(message).to_bytes(4, "big") + message if framed else message
    process = await asyncio.create_subprocess_exec(
        program("curl"), "-sSk", "--http2", "--max-time", "20", "--cert", str(pem), *flags, "-D", "/dev/stderr",
        "--data-binary", "@-", f"https://127.0.0.1:{port}{path}",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate(body)
    assert process.returncode == 0, err.decode()
    first, *lines = (line for line in err.decode().split("\r\n") if line)
    pairs = (line.partition(": ") for line in lines)
    return GrpcAnswer(first.split(" ")[1], {name.lower(): value for name, _, value in pairs}, out)


class _Bytes(CodecBase):
    """Messages as they are."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: object) -> bytes:
        return message

    def decode(self, data: bytes, message_type: object) -> bytes:
        return data


async def unary(port: int, pem: Path, path: str, message: bytes) -> tuple[int, str]:
    """Status and text of a call that is refused, by grpclib."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(pem)
    async with Channel("127.0.0.1", port, ssl=context, codec=_Bytes()) as channel:
        try:
            await UnaryUnaryMethod(channel, path, bytes, bytes)(message, timeout=10)
        except GRPCError as error:
            return error.status.value, error.message or ""
    raise AssertionError(f"{path} is served")


# --- protobuf: only what is length-delimited, which is all that the protocol has


def field(number: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field, in order."""
    while message:
        key, message = _read_varint(message)
        assert key & 7 == 2, f"field {key >> 3} is not length-delimited"
        length, message = _read_varint(message)
        yield key >> 3, message[:length]
        message = message[length:]


def entries(message: bytes, number: int) -> dict[bytes, bytes]:
    """A map field: messages with key 1 and value 2; an empty one may be left out."""
    found = (dict(fields(content)) for given, content in fields(message) if given == number)
    return {entry.get(1, b""): entry.get(2, b"") for entry in found}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes) -> tuple[int, bytes]:
    value = 0
    for place, byte in enumerate(data):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, data[place + 1 :]
    raise AssertionError("a number without an end")
