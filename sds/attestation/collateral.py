# SPDX-License-Identifier: Apache-2.0
"""Intel's signed documents that a quote is judged by: TCB info, QE identity and revocation lists.

They arrive through untrusted hands and are verified together with the quote. What is read here without a signature
check serves only to find, name and date them.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol, Self

import dcap_qvl
from cryptography import x509

from sds.attestation.errors import CollateralUnavailable, Malformed, Unsupported
from sds.attestation.evidence import Evidence, Tee
from sds.x509_errors import X509_ERRORS

# The two real sets are 14 and 16 KB. TCB info grows with every recovery event, CRLs with every revoked platform.
MAX_COLLATERAL = 1024 * 1024

_PARTS = (
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
)

CaName = Literal["processor", "platform"]


@dataclass(frozen=True, slots=True)
class CollateralKey:
    """Which set of documents a quote needs."""

    fmspc: bytes
    ca: CaName
    tee: Tee

    def __str__(self) -> str:
        return f"{self.fmspc.hex()}-{self.ca}-{self.tee.value}"


class CollateralSource(Protocol):
    """A store of collateral. It need not be trusted: what it gives is verified with the quote."""

    async def get(self, key: CollateralKey) -> Collateral:
        """The newest set for this key.

        :raises CollateralUnavailable: if there is none, or it cannot be had now.
        :raises Malformed: if what was found cannot be read.
        """


@dataclass(frozen=True, slots=True)
class SignedDocument:
    """What the JSON inside TCB info or a QE identity says about itself."""

    name: str
    issued: datetime
    next_update: datetime
    evaluation_number: int


@dataclass(frozen=True, slots=True)
class Collateral:
    """One complete set, with the parts parsed that the verifier's own checks need."""

    qvl: dcap_qvl.QuoteCollateralV3 = field(repr=False, compare=False)
    tcb_info: SignedDocument
    qe_identity: SignedDocument
    tee: Tee
    fmspc: bytes
    pce_id: bytes
    crls: tuple[x509.CertificateRevocationList, ...] = field(repr=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read the JSON form of dcap-qvl's ``QuoteCollateralV3``: byte strings are hex, chains PEM.

        :raises Malformed: if it is too large or cannot be read.
        """
        if len(text) > MAX_COLLATERAL:
            raise Malformed(f"collateral size: {len(text)} bytes, at most {MAX_COLLATERAL} are accepted")
        try:
            qvl = dcap_qvl.QuoteCollateralV3.from_json(text.decode() if isinstance(text, bytes) else text)
        except (ValueError, TypeError) as e:
            raise Malformed(f"collateral: {e}") from e
        return cls.of(qvl)

    @classmethod
    def of(cls, qvl: dcap_qvl.QuoteCollateralV3) -> Self:
        """Wrap a set that is already in dcap-qvl's form.

        A PCK chain that came with it is dropped: dcap-qvl would prefer it to the one in the quote, whose certificates
        are the ones that have been looked at.

        :raises Malformed: if a document inside it cannot be read.
        """
        try:
            tcb_info = json.loads(qvl.tcb_info)
            qe_identity = json.loads(qvl.qe_identity)
            return cls(
                qvl=dcap_qvl.QuoteCollateralV3(*(getattr(qvl, part) for part in _PARTS)),
                tcb_info=_document("TCB info", tcb_info),
                qe_identity=_document("QE identity", qe_identity),
                tee=Tee(str(tcb_info["id"]).lower()),
                fmspc=bytes.fromhex(tcb_info["fmspc"]),
                pce_id=bytes.fromhex(tcb_info["pceId"]),
                crls=tuple(_crl(der) for der in (qvl.root_ca_crl, qvl.pck_crl)),
            )
        except (*X509_ERRORS, KeyError, RecursionError, OverflowError) as e:
            raise Malformed(f"collateral: {type(e).__name__}: {e}") from e

    def to_json(self) -> str:
        """The same form that :meth:`from_json` reads."""
        text = self.qvl.to_json()
        if not isinstance(text, str):
            raise TypeError("dcap-qvl gave no text for its collateral")
        return text

    @property
    def next_update(self) -> datetime:
        """When the first of the four documents runs out (certificates live for years and are not asked here)."""
        dates = [self.tcb_info.next_update, self.qe_identity.next_update]
        dates += [crl.next_update_utc for crl in self.crls if crl.next_update_utc is not None]
        return min(dates)


class DirectoryCollateral:
    """Collateral from files ``<fmspc>-<ca>-<tee>.json`` (hex in lower case), which somebody else keeps up to date.

    A file is read again when it changes. Replace it by a rename, or a reader may see half of it (and refuse it).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: dict[CollateralKey, tuple[tuple[int, ...], Collateral]] = {}

    async def get(self, key: CollateralKey) -> Collateral:
        """See :class:`CollateralSource`."""
        return await asyncio.to_thread(self._load, key)

    def _load(self, key: CollateralKey) -> Collateral:
        path = self._path / f"{key}.json"
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                if (known := self._read.get(key)) and known[0] == version:
                    return known[1]
                text = file.read(MAX_COLLATERAL + 1)
        except FileNotFoundError as e:
            raise CollateralUnavailable(f"collateral: no file {path} for this kind of platform") from e
        except OSError as e:
            raise CollateralUnavailable(f"collateral: {path}: {e.strerror}") from e
        try:
            collateral = Collateral.from_json(text)
        except Malformed as e:
            raise Malformed(f"{path}: {e}") from e
        self._read[key] = (version, collateral)
        return collateral


def collateral_key(evidence: Evidence) -> CollateralKey:
    """Read from the quote's (unverified) PCK certificate which collateral it needs.

    :raises Malformed: if the quote holds no certificate that says so.
    """
    try:
        quote = dcap_qvl.parse_quote(evidence.quote)
        fmspc, ca = bytes.fromhex(quote.fmspc()), quote.ca()
    except ValueError as e:
        raise Malformed(f"PCK certificate: {e}") from e
    if ca not in ("processor", "platform") or len(fmspc) != 6:
        raise Unsupported(f"PCK certificate: CA {ca!r}, FMSPC {fmspc.hex()!r}; expected processor or platform, 6 bytes")
    return CollateralKey(fmspc, ca, evidence.tee)


def _document(name: str, value: dict[str, object]) -> SignedDocument:
    number = value["tcbEvaluationDataNumber"]
    if not isinstance(number, int):
        raise ValueError(f"{name}: tcbEvaluationDataNumber is not a number")
    return SignedDocument(name, _date(value["issueDate"]), _date(value["nextUpdate"]), number)


def _crl(der: bytes) -> x509.CertificateRevocationList:
    crl = x509.load_der_x509_crl(der)
    _ = (crl.issuer, crl.next_update_utc)  # read now, not in the middle of a check
    return crl


def _date(value: object) -> datetime:
    date = datetime.fromisoformat(str(value))
    if date.tzinfo is None:
        raise ValueError(f"date {value} has no time zone")
    return date.astimezone(UTC)
