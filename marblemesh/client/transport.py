# SPDX-License-Identifier: Apache-2.0
"""One HTTPS request to one pinned certificate, bounded in time and size, and its failures in words.

The pin is the root certificate itself: a Coordinator presents its self-signed root as its own leaf. That it should
*chain* to the root would not be enough: a Marble's certificate chains to it too (leaf, intermediate, root) and names
whatever its owner asked for, so any Marble could pose as the Coordinator. For the same reason names are not compared:
they say less than the pin, and a Coordinator behind a load balancer has others.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from marblemesh.client.errors import AddressError, BadAnswer, ClientError, NotTrusted, RequestRefused, Unreachable

# A manifest may have 16 MiB; base64 makes 22 MiB of it, JSON escapes hardly more.
MAX_ANSWER = 24 * 1024 * 1024
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff]+")
# A Coordinator's message names manifest members, and at most 50 of them.
_MAX_MESSAGE = 4000


def check_address(address: str) -> str:
    """`host:port` as it is. Raises AddressError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        hint = ", without https:// or a path" if "/" in address else ""
        raise AddressError(f"invalid Coordinator address {printable(address, 120)!r}: want host:port{hint}")
    return address


@dataclass(frozen=True, slots=True)
class Answer:
    """The envelope `{"status": …, "data": …}` of a successful reply, opened."""

    data: object
    request: str

    def member(self, name: str) -> object:
        """A member of `data`, in any case; None if it is not there. Raises BadAnswer if `data` is no object."""
        if not isinstance(self.data, dict):
            raise BadAnswer(f"{self.request}: want an object as data")
        return next((value for key, value in self.data.items() if str(key).lower() == name.lower()), None)

    def text(self, name: str) -> str:
        value = self.member(name)
        if not isinstance(value, str):
            raise BadAnswer(f"{self.request}: the answer has no text {name!r}, so this is no Coordinator of this API")
        return value


@dataclass(frozen=True, slots=True)
class Transport:
    """Speaks to the Coordinator at `address` that holds the key of `root`."""

    address: str
    root: x509.Certificate
    timeout: float

    async def request(self, method: str, path: str, body: object = None) -> Answer:
        """Send one request (`body` as JSON) and open the envelope of its reply.

        Raises Unreachable, NotTrusted (another certificate than the pinned one, or one out of date), RequestRefused
        (with the Coordinator's message) or BadAnswer.
        """
        self._check_dates(datetime.now(UTC))
        url = f"https://{self.address}{path}"
        pin = aiohttp.Fingerprint(self.root.fingerprint(hashes.SHA256()))
        try:
            async with (
                aiohttp.TCPConnector(ssl=pin) as connector,
                aiohttp.ClientSession(
                    connector=connector, timeout=aiohttp.ClientTimeout(total=self.timeout)
                ) as session,
                session.request(
                    method,
                    url,
                    # A context per request for the chain, the connector's fingerprint for "exactly this one".
                    ssl=_only(self.root),
                    data=None if body is None else json.dumps(body).encode(),
                    headers={} if body is None else {"Content-Type": "application/json"},
                    allow_redirects=False,
                ) as response,
            ):
                raw = await _read(response)
                status, reason = response.status, response.reason or ""
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise explain(self.address, error, self.timeout) from error
        return _open(f"{method} {url}", status, reason, raw)

    def _check_dates(self, now: datetime) -> None:
        if not self.root.not_valid_before_utc <= now <= self.root.not_valid_after_utc:
            raise NotTrusted(
                f"the pinned Coordinator certificate is valid from {self.root.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{self.root.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, not now: attest the Coordinator again"
            )


def _only(root: x509.Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # see the module's docstring
    context.load_verify_locations(cadata=root.public_bytes(Encoding.DER))
    return context


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_chunked(64 * 1024):
        body += piece
        if len(body) > MAX_ANSWER:
            raise BadAnswer(f"{response.url}: answer is larger than {MAX_ANSWER} bytes")
    return bytes(body)


def _open(request: str, status: int, reason: str, raw: bytes) -> Answer:
    try:
        envelope = json.loads(raw)
    except (ValueError, RecursionError):
        envelope = None
    if not isinstance(envelope, Mapping) or not isinstance(envelope.get("status"), str):
        raise BadAnswer(f"{request}: {status} {printable(reason)}: the answer is no Coordinator's")
    if status == 200 and envelope["status"] == "success":
        return Answer(envelope.get("data"), request)
    message = printable(str(envelope.get("message") or ""), _MAX_MESSAGE)
    if status == 401:
        raise RequestRefused(f"{request}: authorizing user: {message}", status, message)
    if status == 405:
        raise RequestRefused(f"{request}: {status} {reason}: this Coordinator has no such call", status, message)
    kind = printable(envelope["status"], 20)
    raise RequestRefused(f"{request}: {status} {printable(reason)}: {kind}: {message}", status, message)


def explain(address: str, error: BaseException, timeout: float) -> ClientError:
    """A failure of the network, of TLS or of HTTP as one line that says what to look at."""
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return NotTrusted(
            f"the server at {address} has another certificate (SHA-256 {error.got.hex()}) than the Coordinator that "
            f"was attested or pinned ({error.expected.hex()}): it was set up anew, or this is not it; attest it again"
        )
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return NotTrusted(
            f"the server at {address} does not have the Coordinator certificate that was attested or pinned: "
            "it was set up anew, or this is not it; attest it again"
        )
    if isinstance(error, TimeoutError):
        return Unreachable(f"no answer from {address} within {timeout:g} s: is it up, and is this its client API port?")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
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


def printable(text: str, limit: int = 300) -> str:
    """A stranger's text for a terminal: no control characters, and not a page of it."""
    return _UNPRINTABLE.sub("?", text[:limit])
