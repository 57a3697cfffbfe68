# SPDX-License-Identifier: Apache-2.0
"""Is this quote genuine? Cryptography only, offline, at a time that the caller names.

The signatures, chains, revocation lists, TCB levels and TD attributes are checked by ``dcap-qvl``. It leaves these to
its caller (each was measured to pass without), so they are done here:

1. it does not judge the TCB status: it is a claim here, and :func:`sds.attestation.policy.appraise` judges it;
2. it accepts TCB info and QE identity from *any* end entity under the root, even a PCK key, so that one leaked machine
   could call itself up to date: the signer must be "Intel SGX TCB Signing", issued by the root itself;
3. it does not compare the PCE id of the TCB info with the PCK certificate's;
4. it ignores bytes after the quote and around the certificates: :mod:`sds.attestation.quote` refuses them.

Not checked here: whose code it is (policy), what it is bound to (report data).
"""

from __future__ import annotations

import json
import re
import ssl
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, Self, TypeVar

import dcap_qvl
from cryptography import x509

from sds.attestation.body import PlatformFacts, read_claims
from sds.attestation.chain import (
    PCK_ISSUERS,
    PCK_LEAF,
    TCB_SIGNER,
    describe,
    must_be_in_date,
    must_have_role,
    must_issue,
    must_not_be_revoked,
    public_key,
)
from sds.attestation.claims import Claims
from sds.attestation.collateral import Collateral
from sds.attestation.errors import Expired, Malformed, TcbRejected, Untrusted
from sds.attestation.evidence import Evidence
from sds.attestation.intel_root import INTEL_SGX_ROOT_CA
from sds.attestation.quote import Quote, read_chain, refuse_debug
from sds.x509_errors import X509_ERRORS

# Chains of collateral signers: in practice one, two while Intel renews its certificate. Chains of machines: a rack.
_MAX_KNOWN_CHAINS = 64

K = TypeVar("K")
V = TypeVar("V")

# dcap-qvl has one exception with a text. Only texts that plainly speak of time or of the status become their own class;
# whatever is new or unknown stays Untrusted.
_TIME = re.compile(
    r"expired|issue date is in the future|CrlExpired|CertExpired|CertNotValidYet|not valid yet|InvalidCrlUpdate",
    re.IGNORECASE,
)
_STATUS_REVOKED = re.compile(r"TCB status is invalid: Revoked|status.{0,20}Revoked")
_NO_LEVEL = re.compile(r"No matching TCB level|below (the )?minimum required|No matching.{0,40}level", re.IGNORECASE)


class DcapVerifier:
    """Verifies SGX v3 and TDX v4/v5 quotes under one pinned root.

    Takes about a millisecond with the GIL held: call it directly, threads gain nothing.
    """

    def __init__(self, root_der: bytes, *, simulated: bool = False) -> None:
        """Pin a root certificate (DER). ``simulated`` marks every claim that comes out.

        :raises Malformed: if it is no certificate.
        """
        try:
            self._root = x509.load_der_x509_certificate(root_der)
        except X509_ERRORS as e:
            raise Malformed(f"attestation root: not a DER certificate: {e}") from e
        self.simulated = simulated
        self._qvl = dcap_qvl.QuoteVerifier(bytes(root_der))
        # By the chain's text: reading it and checking two signatures costs a quarter of a verification.
        self._signers: OrderedDict[str, x509.Certificate] = OrderedDict()
        # Machines whose chain was signed by the root: as true for their next quote, dates and revocation apart.
        self._chains: OrderedDict[tuple[x509.Certificate, x509.Certificate], None] = OrderedDict()

    @classmethod
    def intel(cls) -> Self:
        """The verifier for real hardware: Intel's root, which is part of this package."""
        return cls(ssl.PEM_cert_to_DER_cert(INTEL_SGX_ROOT_CA))

    def check_chain(self, evidence: Evidence) -> Quote:
        """Check, before any collateral is fetched for it, that the quote's PCK chain is signed by the pinned root.

        Says nothing about dates and revocation, which :meth:`verify` does. What it spares is a look-up at Intel for
        every machine that a stranger invents.

        :raises Malformed: or :raises Unsupported: if the quote cannot be read.
        :raises Untrusted: if the chain has another root, or a certificate in it has the wrong role.
        """
        quote = Quote.parse(evidence.quote)
        if quote.tee is not evidence.tee:
            raise Malformed(f"quote TEE: {quote.tee.value}, but it was handed over as {evidence.tee.value}")
        leaf, authority = self._below_root(quote)
        if (leaf, authority) not in self._chains:
            must_have_role(leaf, [PCK_LEAF], "PCK certificate")
            must_have_role(authority, PCK_ISSUERS, "PCK certificate authority")
            # From the root down: no signature is checked with a key that a stranger chose.
            must_issue(self._root, authority, "PCK certificate authority")
            must_issue(authority, leaf, "PCK certificate")
            _remember(self._chains, (leaf, authority), None)
        return quote

    def verify(self, evidence: Evidence, collateral: Collateral, now: datetime) -> Claims:
        """Check everything that is signed, and return what the signatures vouch for.

        :param now: an aware time; certificates, CRLs and documents must be in date then.
        :raises Malformed: if the evidence cannot be read.
        :raises Unsupported: if it is of a kind that is not verified here.
        :raises Untrusted: if a signature, chain, role or revocation check fails.
        :raises Expired: if something is out of date, or not valid yet.
        :raises TcbRejected: if the platform's keys are revoked, or it is below every known TCB level.
        :raises PolicyViolation: if it is a debug enclave or debug trust domain, whose memory anybody may read.
        """
        if now.tzinfo is None:
            raise ValueError("verify needs an aware time")
        quote = self.check_chain(evidence)
        refuse_debug(quote)
        _check_documents(evidence, collateral, now)
        certificates = dict(zip(("PCK certificate", "PCK certificate authority"), quote.pck_chain, strict=False))
        certificates["TCB info signer"] = self._signer(collateral.qvl.tcb_info_issuer_chain, "TCB info signer")
        certificates["QE identity signer"] = self._signer(collateral.qvl.qe_identity_issuer_chain, "QE identity signer")
        for what, certificate in certificates.items():
            must_be_in_date(certificate, now, what)
            must_not_be_revoked(certificate, collateral.crls, what)
        policy = dcap_qvl.QuotePolicy.claims_only(int(now.timestamp()))
        try:
            claims = self._qvl.verify_with_policy(evidence.quote, collateral.qvl, int(now.timestamp()), policy)
            report: Mapping[str, Any] = json.loads(claims.to_json())
        except ValueError as e:
            _refuse(str(e))
        try:
            facts = _facts(report, collateral, simulated=self.simulated)
            pce_id = bytes(report["platform"]["pck"]["pce_id"])
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise Untrusted(f"verification report: dcap-qvl's report cannot be read: {type(e).__name__}: {e}") from e
        if facts.fmspc != collateral.fmspc or pce_id != collateral.pce_id:
            raise Untrusted(
                f"TCB info: it is for FMSPC {collateral.fmspc.hex()} and PCE id {collateral.pce_id.hex()},"
                f" the PCK certificate says {facts.fmspc.hex()} and {pce_id.hex()}"
            )
        return read_claims(quote, facts)

    def _below_root(self, quote: Quote) -> tuple[x509.Certificate, x509.Certificate]:
        """PCK certificate and its issuer. The root may come along; then it must be the pinned one, by key."""
        *chain, last = quote.pck_chain
        if last.issuer != last.subject:
            chain.append(last)
        elif public_key(last) != public_key(self._root):
            hint = "" if self.simulated else "; simulated evidence is only accepted where simulation is switched on"
            raise Untrusted(
                f"PCK certificate chain: its root is {describe(last)}, pinned is {describe(self._root)}{hint}"
            )
        if len(chain) != 2:
            raise Untrusted(f"PCK certificate chain: {len(chain)} certificates below the root, expected 2")
        return chain[0], chain[1]

    def _signer(self, chain_pem: str, what: str) -> x509.Certificate:
        """Who signed this collateral; its role is what dcap-qvl does not look at."""
        if known := self._signers.get(chain_pem):
            return known
        signer = read_chain(chain_pem.encode(), what)[0]
        must_have_role(signer, [TCB_SIGNER], what)
        must_issue(self._root, signer, what)
        _remember(self._signers, chain_pem, signer)
        return signer


def _remember(known: OrderedDict[K, V], key: K, value: V) -> None:
    known[key] = value
    if len(known) > _MAX_KNOWN_CHAINS:
        known.popitem(last=False)


def _check_documents(evidence: Evidence, collateral: Collateral, now: datetime) -> None:
    """The same that dcap-qvl checks, with a message that says which document and when."""
    if collateral.tee is not evidence.tee:
        raise Untrusted(f"TCB info: it is for {collateral.tee.value}, the quote is of {evidence.tee.value}")
    for document in (collateral.tcb_info, collateral.qe_identity):
        if now < document.issued:
            raise Expired(f"{document.name}: issued at {document.issued:%Y-%m-%dT%H:%M:%SZ}, which is in the future")
        if now > document.next_update:
            raise Expired(
                f"{document.name}: expired at {document.next_update:%Y-%m-%dT%H:%M:%SZ}; renew the collateral"
            )
    for crl in collateral.crls:
        until = crl.next_update_utc
        if until is None or now >= until:
            when = f"expired at {until:%Y-%m-%dT%H:%M:%SZ}" if until else "has no expiry"
            raise Expired(f"revocation list of {crl.issuer.rfc4514_string()!r}: {when}; renew the collateral")


def _refuse(text: str) -> NoReturn:
    text = text.removeprefix("Verification failed: ")
    if _STATUS_REVOKED.search(text):
        raise TcbRejected("Revoked", (), f"TCB status: the platform's keys are revoked ({text})")
    if _NO_LEVEL.search(text):
        raise TcbRejected(
            "OutOfDate", (), f"TCB level: the platform is older than every level that Intel lists ({text})"
        )
    if _TIME.search(text):
        raise Expired(f"validity: {text}")
    raise Untrusted(f"quote verification: {text}")


def _facts(report: Mapping[str, Any], collateral: Collateral, *, simulated: bool) -> PlatformFacts:
    pck, tcb = report["platform"]["pck"], report["tcb"]
    expires = min(report["earliest_expiration_date"], report["qe_iden_earliest_expiration_date"])
    piid = pck["platform_instance_id"]
    return PlatformFacts(
        tcb_status=str(tcb["status"]),
        advisories=tuple(str(advisory) for advisory in tcb["advisory_ids"]),
        tcb_evaluation_number=min(collateral.tcb_info.evaluation_number, collateral.qe_identity.evaluation_number),
        fmspc=bytes(pck["fmspc"]),
        platform_id=None if piid is None else bytes(piid),
        simulated=simulated,
        collateral_expires=min(datetime.fromtimestamp(expires, UTC), collateral.next_update),
        report=next(iter(report["report"].values())),
    )
