# SPDX-License-Identifier: Apache-2.0
"""Is this Coordinator what it should be? Ask it for its quote, and take its certificates only if the quote binds them.

TLS is not authenticated while asking: there is nothing yet to authenticate it with, and nothing secret is sent. The
quote signs the hash of the root certificate and of our nonce; whoever relays it hands out the genuine root, and cannot
answer under it. So what counts afterwards are the certificates of the statement, not the connection it came over.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import aiohttp
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from sds.attestation.appraiser import Appraiser
from sds.attestation.claims import Claims
from sds.attestation.errors import CoordinatorUnavailable, Malformed, Untrusted
from sds.attestation.evidence import MAX_EVIDENCE
from sds.attestation.http_body import read_body
from sds.attestation.policy import Policy
from sds.attestation.quote import read_chain
from sds.attestation.report_data import MAX_NONCE, coordinator_report_data
from sds.x509_errors import X509_ERRORS

# A quote in base64 and two certificates.
_MAX_ANSWER = 64 * 1024
_NONCE_SIZE = 32
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")
_PRINTABLE = re.compile(r"[^\x20-\x7e]+")


@dataclass(frozen=True, slots=True)
class CoordinatorStatement:
    """What a Coordinator said about itself."""

    claims: Claims | None
    """What its quote proved; None if nobody looked (see :func:`fetch_unverified`)."""
    root: x509.Certificate = field(repr=False)
    intermediate: x509.Certificate = field(repr=False)
    chain_pem: bytes = field(repr=False)
    """Intermediate, then root."""
    quote: bytes | None = field(default=None, repr=False)
    """As it came; None if the Coordinator has none."""


async def attest_coordinator(
    address: str,
    appraiser: Appraiser,
    policy: Policy,
    nonce: bytes | None = None,
    timeout: float = 10.0,  # noqa: ASYNC109 - seconds for the whole exchange; aiohttp keeps them
) -> CoordinatorStatement:
    """Find out whether the Coordinator's client API at ``host:port`` belongs to code that the policy allows.

    :param nonce: what makes the quote fresh, at most 1 KiB; by default 32 random bytes.
    :raises CoordinatorUnavailable: if it cannot be reached, or answers with an error.
    :raises Untrusted: if it has no quote, or its certificates do not belong together.
    :raises AttestationError: of any other class, as :meth:`Appraiser.appraise` says.
    """
    nonce = secrets.token_bytes(_NONCE_SIZE) if nonce is None else nonce
    if len(nonce) > MAX_NONCE:
        raise Malformed(f"nonce: {len(nonce)} bytes, at most {MAX_NONCE} are allowed")
    statement = await _ask(address, nonce, timeout)
    if statement.quote is None:
        raise Untrusted(
            f"coordinator quote: {address} has none, so it runs outside a TEE: nothing about it can be proven;"
            " use --insecure only to try things out"
        )
    report_data = coordinator_report_data(statement.root.public_bytes(Encoding.DER), nonce)
    claims = await appraiser.appraise(statement.quote, report_data, policy)
    return replace(statement, claims=claims)


async def fetch_unverified(address: str, timeout: float = 10.0) -> CoordinatorStatement:  # noqa: ASYNC109 - as above
    """The certificates that whoever answers at this address gives out. Proves nothing.

    :raises CoordinatorUnavailable: if it cannot be reached, or answers with an error.
    :raises Untrusted: if its certificates do not belong together.
    """
    return await _ask(address, b"", timeout)


async def _ask(address: str, nonce: bytes, seconds: float) -> CoordinatorStatement:
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise Malformed(f"coordinator address: {address!r}, expected host:port")
    # A quote without nonce is the one that the Coordinator made at its start.
    query = {"nonce": base64.urlsafe_b64encode(nonce).decode()} if nonce else {}
    limits = aiohttp.ClientTimeout(total=seconds)
    try:
        async with (
            aiohttp.ClientSession(timeout=limits) as session,
            session.get(
                f"https://{address}/api/v2/quote", params=query, ssl=_unauthenticated(), allow_redirects=False
            ) as response,
        ):
            body = await read_body(response, _MAX_ANSWER, "coordinator quote")
            status = response.status
    except TimeoutError as e:
        raise CoordinatorUnavailable(f"coordinator {address}: no answer within {seconds:g} s") from e
    except (aiohttp.ClientError, OSError) as e:
        raise CoordinatorUnavailable(f"coordinator {address}: {str(e) or type(e).__name__}") from e
    return _statement(_data(body, status, address))


def _data(body: bytes, status: int, address: str) -> Mapping[str, object]:
    """Open the envelope ``{"status": ..., "data": ..., "message": ...}``."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise CoordinatorUnavailable(f"coordinator {address}: {status} with something other than a JSON object")
    data = answer.get("data")
    if status != 200 or answer.get("status") != "success" or not isinstance(data, dict):
        # A stranger's text goes to a terminal: printable ASCII only, and not a page of it.
        message = _PRINTABLE.sub("?", str(answer.get("message") or "no message"))[:200]
        raise CoordinatorUnavailable(f"coordinator {address}: {status}: {message}")
    return data


def _statement(data: Mapping[str, object]) -> CoordinatorStatement:
    pem, quote = data.get("cert"), data.get("quote")
    if not isinstance(pem, str) or not isinstance(quote, str | None):
        raise Malformed("coordinator quote: expected the members cert (text) and quote (base64 or null)")
    chain = read_chain(pem.encode("utf-8", "replace"), "coordinator certificates")
    if len(chain) != 2:
        raise Malformed(f"coordinator certificates: {len(chain)}, expected 2 (intermediate, then root)")
    intermediate, root = chain
    for certificate in chain:
        try:
            certificate.verify_directly_issued_by(root)
        except (*X509_ERRORS, InvalidSignature) as e:
            name = certificate.subject.rfc4514_string()
            raise Untrusted(f"coordinator certificates: {name!r} is not issued by the root after it") from e
    chain_pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
    return CoordinatorStatement(None, root, intermediate, chain_pem, _decoded(quote))


def _decoded(quote: str | None) -> bytes | None:
    if not quote:
        return None
    if len(quote) > 2 * MAX_EVIDENCE:
        raise Malformed(f"coordinator quote: {len(quote)} characters of base64")
    try:
        return base64.b64decode(quote, validate=True)
    except ValueError as e:  # not ASCII, or not base64
        raise Malformed(f"coordinator quote: not base64: {e}") from e


def _unauthenticated() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
