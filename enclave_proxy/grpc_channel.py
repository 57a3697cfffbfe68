# SPDX-License-Identifier: Apache-2.0
"""gRPC as this worker needs it: raw bytes, a bound on every message, and a look at the server before it gets a byte.

grpclib and not grpcio: it takes a stdlib SSL context, so that the server's certificate can be judged by our own rules,
and 30 MB of C++ stay out of the TCB.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any, cast

from cryptography import x509
from grpclib.client import Channel, Stream
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.protocol import H2Protocol
from grpclib.protocol import Stream as H2Stream

from enclave_proxy.config import HostPort
from sds.x509_errors import X509_ERRORS

# What a channel raises when the other side is not there, goes away or speaks something else. (TLS errors and refused
# connections are OSErrors.)
CHANNEL_ERRORS = (OSError, TimeoutError, GRPCError, ProtocolError, StreamTerminatedError)

RawStream = Stream[bytes, bytes]
ServerCheck = Callable[[x509.Certificate], None]


class RawCodec(CodecBase):
    """Bytes in, bytes out: messages are parsed where their meaning is known, by strict parsers."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        """The message as it is."""
        return cast(bytes, message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        """The message as it is."""
        return data


class SecureChannel(Channel):
    """One TLS connection to one server, checked by `check` before any request goes out.

    `check` gets the server's certificate and raises an OSError (such as ssl.SSLCertVerificationError) to refuse it.
    """

    def __init__(
        self, address: HostPort, context: ssl.SSLContext, check: ServerCheck, *, sni: str | None, timeout: float
    ) -> None:
        super().__init__(address.host, address.port, codec=RawCodec(), ssl=context)
        self._context = context
        self._check = check
        self._sni = sni
        self._timeout = timeout

    async def _create_connection(self) -> H2Protocol:
        async with asyncio.timeout(self._timeout):
            transport, protocol = await asyncio.get_running_loop().create_connection(
                self._protocol_factory,
                self._host,
                self._port,
                ssl=self._context,
                server_hostname=self._sni or self._host,
            )
        try:
            tls = transport.get_extra_info("ssl_object")
            if tls.selected_alpn_protocol() != "h2":
                raise ssl.SSLError("the server does not speak HTTP/2 (ALPN h2): is this the right port?")
            self._check(_certificate(tls.getpeercert(binary_form=True)))
        except BaseException:
            transport.abort()
            raise
        _notice_a_dead_peer(transport.get_extra_info("socket"))
        return protocol


def _certificate(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except X509_ERRORS as error:
        raise ssl.SSLError("the server shows a certificate that cannot be read") from error


def _notice_a_dead_peer(sock: socket.socket) -> None:
    """30 s idle + 3 probes x 10 s: a control plane that vanished without a word is noticed within a minute.

    By TCP and not by HTTP/2 pings: gRPC servers punish pings on a quiet stream that come more often than every 5 min.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def receive(stream: RawStream, limit: int) -> bytes | None:
    """The next message, None at the end of the stream; at most `limit` bytes."""
    if stream.initial_metadata is None:
        await stream.recv_initial_metadata()
    if stream.trailing_metadata is not None:  # a "trailers-only" answer
        return None
    with stream._wrapper:
        return await read_message(stream._stream, limit)


async def read_message(raw: H2Stream, limit: int) -> bytes | None:
    """The next message of an HTTP/2 stream. Raises grpclib's ProtocolError for one that is longer than `limit`.

    grpclib's own `recv_message` believes the length in front of a message (up to 4 GiB) and opens the flow control
    window for it; so its three lines are here once more, with the bound before the read.
    """
    try:
        head = await raw.recv_data(5)
        if not head:
            return None
        compressed, length = struct.unpack(">BI", head)
        if compressed or length > limit:
            raise ProtocolError(
                f"message of {length} bytes (compressed: {bool(compressed)}), at most {limit} are accepted"
            )
        body = await raw.recv_data(length)
    except AssertionError as error:  # grpclib's word for a body that ends before its length says
        raise ProtocolError("message was cut short") from error
    if len(body) != length:
        raise ProtocolError("message was cut short")
    return body


def ended_in_order(stream: RawStream) -> bool:
    """Whether the server has ended the stream with OK.

    It may do so while we have not: then HTTP/2 has it reset the stream after its last word, which grpclib takes for a
    failure of the connection.
    """
    raw = getattr(stream, "_stream", None)  # there is none before the request is out
    return raw is not None and dict(raw.trailers or ()).get("grpc-status") == "0"


def describe(error: BaseException) -> str:
    """What went wrong with a channel, in one line for an operator."""
    match error:
        case GRPCError():
            return f"{error.status.name}: {error.message or 'no reason given'}"
        case TimeoutError():
            return "no answer in time"
        case ssl.SSLCertVerificationError():
            return f"TLS: {getattr(error, 'verify_message', None) or error}"
        case ssl.SSLError():
            return f"TLS: {tls_reason(error) or error}"
        case socket.gaierror():
            return (error.strerror or str(error)).lower()
        case OSError() if error.errno:
            # Not `strerror`: asyncio puts its own words and the address in there.
            return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


def tls_reason(error: ssl.SSLError) -> str:
    """OpenSSL's name for what went wrong; empty for errors of other origin, which lack the attribute."""
    return getattr(error, "reason", None) or ""
