# SPDX-License-Identifier: Apache-2.0
"""One HTTPS request to one pinned certificate, bounded in time and size, and its failures in words.

The pin is the root certificate itself: a Coordinator presents its self-signed root as its own leaf. That it should
*chain* to the root would not be enough: a Marble's certificate chains to it too (leaf, intermediate, root) and names
whatever its owner asked for, so any Marble could pose as the Coordinator. For the same reason names are not compared:
they say less than the pin, and a Coordinator behind a load balancer has others.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from yarl import URL

from marblemesh.client.answer import Answer, open_envelope, printable
from marblemesh.client.errors import AddressError, BadAnswer, ClientError, NotTrusted, Unreachable
from marblemesh.client.gnutls import AnotherServer, GnuTlsError
from marblemesh.client.identity import ClientIdentity
from marblemesh.client.token import TokenIdentity
from marblemesh.client.token_http import Exchange, exchange
from sds.material import TrustBundle
from sds.tls import client_context

# A manifest may have 16 MiB; base64 makes 22 MiB of it, JSON escapes hardly more.
MAX_ANSWER = 24 * 1024 * 1024
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")


def check_address(address: str) -> str:
    """`host:port` as it is. Raises AddressError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        hint = ", without https:// or a path" if "/" in address else ""
        raise AddressError(f"invalid Coordinator address {printable(address, 120)!r}: want host:port{hint}")
    return address


@dataclass(frozen=True, slots=True)
class Transport:
    """Speaks to the Coordinator at `address` that holds the key of `root`."""

    address: str
    root: x509.Certificate
    timeout: float
    identity: ClientIdentity | None = None

    async def request(
        self, method: str, path: str, body: object = None, *, query: Sequence[tuple[str, str]] = ()
    ) -> Answer:
        """Send one request (`body` as it is if it is bytes, else as JSON) and open the envelope of its reply.

        Raises Unreachable, NotTrusted (another certificate than the pinned one, or one out of date), RequestRefused
        (with the Coordinator's message), NoSuchCall or BadAnswer.
        """
        self._check_dates(datetime.now(UTC))
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": _type_of(body)}
        target = path + ("?" + urlencode(query) if query else "")
        send = self._by_token if isinstance(self.identity, TokenIdentity) else self._by_aiohttp
        try:
            got = await send(method, target, data, headers)
        except (aiohttp.ClientError, OSError, TimeoutError, GnuTlsError) as error:
            raise explain(self.address, error, self.timeout) from error
        return open_envelope(f"{method} https://{self.address}{path}", got.status, got.reason, got.body)

    async def _by_aiohttp(self, method: str, target: str, data: bytes | None, headers: dict[str, str]) -> Exchange:
        pin = aiohttp.Fingerprint(self.root.fingerprint(hashes.SHA256()))
        async with (
            aiohttp.TCPConnector(ssl=pin) as connector,
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=self.timeout)) as session,
            session.request(
                method,
                URL(f"https://{self.address}{target}", encoded=True),
                # A context per request for the chain, the connector's fingerprint for "exactly this one".
                ssl=self._context(),
                data=data,
                headers=headers,
                allow_redirects=False,
            ) as response,
        ):
            return Exchange(response.status, response.reason or "", await _read(response))

    async def _by_token(self, method: str, target: str, data: bytes | None, headers: dict[str, str]) -> Exchange:
        if not isinstance(self.identity, TokenIdentity):
            raise TypeError("no identity on a token")
        server = self.root.public_bytes(Encoding.DER)
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.address}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [] if data is None else [f"Content-Length: {len(data)}"]
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        return await asyncio.to_thread(
            exchange, self.address, server, self.identity, head + (data or b""), MAX_ANSWER, self.timeout
        )

    def _context(self) -> ssl.SSLContext:
        bundle = TrustBundle(self.root.public_bytes(Encoding.PEM))
        identity = None if isinstance(self.identity, TokenIdentity) else self.identity
        return client_context(identity, bundle, ssl.TLSVersion.TLSv1_2)

    def _check_dates(self, now: datetime) -> None:
        if not self.root.not_valid_before_utc <= now <= self.root.not_valid_after_utc:
            raise NotTrusted(
                f"the pinned Coordinator certificate is valid from {self.root.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{self.root.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, not now: attest the Coordinator again"
            )


def _type_of(body: object) -> str:
    return "application/octet-stream" if isinstance(body, bytes) else "application/json"


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_chunked(64 * 1024):
        body += piece
        if len(body) > MAX_ANSWER:
            raise BadAnswer(f"{response.url}: answer is larger than {MAX_ANSWER} bytes")
    return bytes(body)


def explain(address: str, error: BaseException, timeout: float) -> ClientError:
    """A failure of the network, of TLS or of HTTP as one line that says what to look at."""
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return NotTrusted(
            f"the server at {address} has another certificate (SHA-256 {error.got.hex()}) than the Coordinator that "
            f"was attested or pinned ({error.expected.hex()}): it was set up anew, or this is not it; attest it again"
        )
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError | AnotherServer):
        return NotTrusted(
            f"the server at {address} does not have the Coordinator certificate that was attested or pinned: "
            "it was set up anew, or this is not it; attest it again"
        )
    if isinstance(error, TimeoutError):
        return Unreachable(f"no answer from {address} within {timeout:g} s: is it up, and is this its client API port?")
    if isinstance(error, GnuTlsError):
        return Unreachable(f"{address}: {printable(str(error))}: want the Coordinator's client API (default port 4433)")
    if isinstance(error, aiohttp.ClientConnectorDNSError | socket.gaierror):
        return Unreachable(f"cannot find the host of {address}: check the name")
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return Unreachable(f"{address} does not speak HTTPS: want the Coordinator's client API (default port 4433)")
    if isinstance(error.__cause__, ssl.SSLError):  # an alert after the handshake: it wants a client certificate
        return Unreachable(f"{address} is no client API (it wants a client certificate): its default port is 4433")
    os_error = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(os_error, ConnectionRefusedError):
        return Unreachable(f"{address} refuses connections: is the Coordinator up, and is this its client API port?")
    if isinstance(os_error, ConnectionResetError | aiohttp.ServerDisconnectedError | aiohttp.ClientResponseError):
        return Unreachable(
            f"{address} does not speak HTTPS as a Coordinator does: want its client API (default port 4433)"
        )
    text = os_error.strerror if isinstance(os_error, OSError) and os_error.strerror else str(os_error)
    return Unreachable(f"cannot talk to {address}: {printable(text) or type(error).__name__}")
