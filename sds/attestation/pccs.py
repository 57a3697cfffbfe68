# SPDX-License-Identifier: Apache-2.0
"""Collateral from a PCCS: Intel's caching service, version 4 of its interface, as every SGX data centre runs one.

Nothing that comes from there is trusted; all of it is signed by Intel and verified with the quote. (``https`` is
verified nevertheless, against the system's CAs; ``SSL_CERT_FILE`` names others.)

A set is asked for again once a day, since Intel publishes news long before the old set runs out. While the service does
not answer, a set that is still in date goes on being used.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import aiohttp
import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sds.attestation.collateral import MAX_COLLATERAL, Collateral, CollateralKey
from sds.attestation.errors import AttestationError, CollateralUnavailable, Malformed
from sds.attestation.http_body import read_body
from sds.x509_errors import X509_ERRORS

REFRESH_AFTER = timedelta(days=1)
# While the service is down, at most one attempt in this time per kind of platform: nobody queues behind timeouts.
RETRY_AFTER = timedelta(seconds=15)
# Kinds of platform in one mesh. There are a few dozen in the world.
_MAX_KINDS = 64

_SIGNATURE = re.compile(r'\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{128})"\s*\}\s*')
_TCB_CHAIN = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")
_QE_CHAIN = ("SGX-Enclave-Identity-Issuer-Chain", "Enclave-Identity-Issuer-Chain")
_CRL_CHAIN = ("SGX-PCK-CRL-Issuer-Chain",)


@dataclass(slots=True)
class _Entry:
    """What is known about one kind of platform."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    collateral: Collateral | None = None
    ask_again: datetime | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    headers: dict[str, str]
    body: bytes
    url: str


def _utc_now() -> datetime:
    return datetime.now(UTC)


class PccsCollateral:
    """A client of one PCCS, with a cache."""

    def __init__(self, url: str, *, timeout: float = 10.0, now: Callable[[], datetime] = _utc_now) -> None:
        """``url`` is what comes before ``/sgx/certification``; ``timeout`` is seconds for one whole set."""
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._now = now
        # The machine's authorities. Without TLS nobody needs them, and reading them takes 20 ms.
        self._anchors = None if self._url.lower().startswith("http:") else ssl.create_default_context()
        self._entries: OrderedDict[CollateralKey, _Entry] = OrderedDict()

    async def get(self, key: CollateralKey) -> Collateral:
        """See :class:`sds.attestation.collateral.CollateralSource`. Any number of askers cost one look-up."""
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        while len(self._entries) > _MAX_KINDS:
            self._entries.popitem(last=False)
        async with entry.lock:
            now = self._now()
            if entry.ask_again is None or now >= entry.ask_again:
                await self._refresh(key, entry, now)
            if entry.collateral is not None and now <= entry.collateral.next_update:
                return entry.collateral
            raise CollateralUnavailable(
                entry.problem or f"collateral: the set for {key} from {self._url} is out of date"
            )

    async def _refresh(self, key: CollateralKey, entry: _Entry, now: datetime) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                entry.collateral = await self._fetch(key)
        except (AttestationError, aiohttp.ClientError, OSError, ValueError) as e:
            # TimeoutError is an OSError; ValueError is what aiohttp raises for a URL that is none.
            entry.problem = f"collateral for {key} from {self._url}: {str(e) or type(e).__name__}"
            entry.ask_again = now + RETRY_AFTER
        else:
            entry.problem = ""
            entry.ask_again = min(now + REFRESH_AFTER, max(entry.collateral.next_update, now + RETRY_AFTER))

    async def _fetch(self, key: CollateralKey) -> Collateral:
        """Five documents, one after the other over one connection: it happens once a day."""
        sgx, tee = "/sgx/certification/v4", f"/{key.tee.value}/certification/v4"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._anchors or True)) as session:
            tcb = await self._ask(session, f"{tee}/tcb", fmspc=key.fmspc.hex().upper())
            qe = await self._ask(session, f"{tee}/qe/identity")
            pck_crl = await self._ask(session, f"{sgx}/pckcrl", ca=key.ca, encoding="der")
            root_crl = await self._ask(session, f"{sgx}/rootcacrl")
        tcb_info, tcb_signature = cut_signed(tcb.body, "tcbInfo")
        qe_identity, qe_signature = cut_signed(qe.body, "enclaveIdentity")
        return Collateral.of(
            dcap_qvl.QuoteCollateralV3(
                pck_crl_issuer_chain=_chain(pck_crl, _CRL_CHAIN),
                root_ca_crl=read_crl(root_crl.body),
                pck_crl=read_crl(pck_crl.body),
                tcb_info_issuer_chain=_chain(tcb, _TCB_CHAIN),
                tcb_info=tcb_info,
                tcb_info_signature=tcb_signature,
                qe_identity_issuer_chain=_chain(qe, _QE_CHAIN),
                qe_identity=qe_identity,
                qe_identity_signature=qe_signature,
            )
        )

    async def _ask(self, session: aiohttp.ClientSession, path: str, **query: str) -> _Answer:
        async with session.get(self._url + path, params=query, allow_redirects=False) as response:
            if response.status != 200:
                raise CollateralUnavailable(f"{path} answered {response.status}, expected 200")
            body = await read_body(response, MAX_COLLATERAL, path)
            return _Answer({name.lower(): value for name, value in response.headers.items()}, body, path)


def cut_signed(body: bytes, member: str) -> tuple[str, bytes]:
    """Cut ``{"<member>":{...},"signature":"<hex>"}`` into the inner object's exact text and the 64 bytes over it.

    The signature is over the bytes as sent; writing the parsed value out again could change them.

    :raises Malformed: if the body has another form.
    """
    try:
        text = body.decode()
        start = re.compile(rf'\s*\{{\s*"{member}"\s*:\s*(?=\{{)').match(text)
        if start is None:
            raise ValueError(f"does not begin with {member}")
        _, end = json.JSONDecoder().raw_decode(text, start.end())
        signature = _SIGNATURE.fullmatch(text, end)
        if signature is None:
            raise ValueError("does not end with a signature of 128 hex digits")
    except (ValueError, RecursionError) as e:
        raise Malformed(f"{member}: {e}") from e
    return text[start.end() : end], bytes.fromhex(signature[1])


def read_crl(body: bytes) -> bytes:
    """A revocation list in DER, whichever of the three forms in use it came in: DER, hex or PEM.

    :raises Malformed: if it is none of them.
    """
    try:
        if body.startswith(b"-----BEGIN"):
            crl = x509.load_pem_x509_crl(body)
        elif body.startswith(b"\x30"):
            crl = x509.load_der_x509_crl(body)
        else:
            crl = x509.load_der_x509_crl(bytes.fromhex(body.decode("ascii").strip().strip('"')))
    except X509_ERRORS as e:
        raise Malformed(f"revocation list: neither DER, nor hex, nor PEM: {e}") from e
    return crl.public_bytes(Encoding.DER)


def _chain(answer: _Answer, names: tuple[str, ...]) -> str:
    for name in names:
        if value := answer.headers.get(name.lower()):
            return unquote(value)
    raise Malformed(f"{answer.url}: header {names[0]} is missing")
