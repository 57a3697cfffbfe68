# SPDX-License-Identifier: Apache-2.0
"""Calls about status and recovery, and those that a manifest's feature gates allow: signed quotes, counters."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from marblemesh.client.answer import encoded, printable
from marblemesh.client.calls_manifest import check_root_signature
from marblemesh.client.errors import BadAnswer, IdentityError, NoSuchCall
from marblemesh.client.recovery import parse_public_key
from marblemesh.client.transport import Transport


@dataclass(frozen=True, slots=True)
class Status:
    """The Coordinator's state: 1 recovery, 2 waits for a manifest, 3 accepts Marbles."""

    code: int
    message: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a recovery stands: done once no more secrets remain to be given."""

    remaining: int
    message: str


@dataclass(frozen=True, slots=True)
class SignedQuote:
    """A quote that the Coordinator verified: its TCB status, and the root key's signature over both."""

    quote: bytes = field(repr=False)
    tcb_status: str
    signature: bytes = field(repr=False)


async def get_status(transport: Transport) -> Status:
    try:
        answer = await transport.request("GET", "/api/v2/status")
        return Status(answer.integer("code"), printable(answer.text("message")))
    except NoSuchCall:
        answer = await transport.request("GET", "/status")
        return Status(answer.integer("StatusCode"), printable(answer.text("StatusMessage")))


async def recover(transport: Transport, secret: bytes, signature: bytes) -> Recovery:
    # Version 1 of this call is disabled in every Coordinator that has it (410).
    body = {"recoverySecret": encoded(secret), "recoverySecretSignature": encoded(signature)}
    answer = await transport.request("POST", "/api/v2/recover", body)
    return Recovery(answer.integer("remaining"), printable(answer.text("message")))


async def get_recovery_public_key(transport: Transport) -> rsa.RSAPublicKey:
    answer = await transport.request("GET", "/api/v2/recover/public-key")
    if answer.text("algorithm") != "RSA":
        raise BadAnswer(f"{answer.request}: the key's algorithm is {printable(answer.text('algorithm'))!r}, want RSA")
    try:
        return parse_public_key(answer.binary("ephemeralPublicKey"))
    except IdentityError as error:
        raise BadAnswer(f"{answer.request}: {error}") from None


async def sign_quote(transport: Transport, root: x509.Certificate, quote: bytes) -> SignedQuote:
    answer = await transport.request("POST", "/api/v2/sign-quote", {"sgxQuote": encoded(quote)})
    signed = SignedQuote(quote, answer.text("tcbStatus"), answer.binary("verificationSignature"))
    verify_signed_quote(root, signed)
    return signed


async def set_monotonic_counter(transport: Transport, name: str, value: int) -> int:
    answer = await transport.request("POST", "/api/v2/monotonic-counter", {"name": name, "value": value})
    return answer.integer("value")


def verify_signed_quote(root: x509.Certificate, signed: SignedQuote) -> None:
    """Raise BadAnswer unless the Coordinator with this root certificate signed the quote and its TCB status.

    Whether the status is good enough, and whether the quote shows the code it should, is the caller's to decide.
    """
    data = encoded(signed.quote).encode() + signed.tcb_status.encode()
    check_root_signature(root, data, signed.signature, "the quote with its TCB status")
