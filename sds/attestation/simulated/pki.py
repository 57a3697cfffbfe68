# SPDX-License-Identifier: Apache-2.0
"""The keys and certificates that Intel and a machine have, made for a simulated platform.

::

    root ──┬── Platform CA ── PCK leaf (names the machine; its key signs the quoting enclave's report)
           └── TCB signing (signs TCB info and QE identity)

The common names are Intel's, because the verifier checks roles by them; the organisation says that it is a simulation.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

ORGANISATION = "Marblemesh simulation (proves nothing about hardware)"

# One kind of machine for all simulated platforms; the PIID says which machine. All components of its TCB are at 5.
FMSPC = b"SIMU\x00\x01"
PCE_ID = b"\x00\x00"
CPU_SVN = bytes([5] * 16)
PCE_SVN = 13

# The whole range of dates that tests and wrong clocks may ask for. A simulated root protects nothing by expiring.
_NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(2049, 12, 31, tzinfo=UTC)

_SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def sign(self, data: bytes) -> bytes:
        """ECDSA with SHA-256, as DCAP writes it: r and s, 32 bytes each, big-endian."""
        return sign_raw(self.key, data)


@dataclass(frozen=True, slots=True)
class Pki:
    """All of one simulated platform's keys and certificates."""

    root: Pair
    platform_ca: Pair
    pck: Pair
    tcb_signing: Pair

    @classmethod
    def create(cls) -> Self:
        """Make new keys; no two platforms share one."""
        root = _issue("Simulated SGX Root CA", None, ca=1)
        platform_ca = _issue("Intel SGX PCK Platform CA", root, ca=0)
        extension = x509.UnrecognizedExtension(_SGX_EXTENSION, _sgx_extension())
        return cls(
            root=root,
            platform_ca=platform_ca,
            pck=_issue("Intel SGX PCK Certificate", platform_ca, extension),
            tcb_signing=_issue("Intel SGX TCB Signing", root),
        )

    @property
    def root_der(self) -> bytes:
        return self.root.certificate.public_bytes(Encoding.DER)

    @property
    def pck_chain(self) -> str:
        """PEM, leaf first, as it lies in quotes."""
        return self.pck.pem + self.platform_ca.pem + self.root.pem


def revocation_list(issuer: Pair, issued: datetime, next_update: datetime, revoked: tuple[Pair, ...] = ()) -> bytes:
    """A CRL in DER. It needs a CRL number: dcap-qvl refuses one without any extension."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(issued)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for pair in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(pair.certificate.serial_number).revocation_date(issued)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def sign_raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA P-256 with SHA-256 as 64 raw bytes: r, then s, big-endian."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public point as 64 raw bytes: x, then y, big-endian."""
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def _issue(
    name: str, issuer: Pair | None, extension: x509.UnrecognizedExtension | None = None, *, ca: int | None = None
) -> Pair:
    """Make a key and its certificate; ``ca`` is the path length of a CA, None for an end entity."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION)]
    )
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=ca is not None, path_length=ca), critical=True)
        .add_extension(_key_usage(ca is not None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    return Pair(builder.sign(signer, hashes.SHA256()), key)


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _sgx_extension() -> bytes:
    """What a PCK certificate says about its machine (Intel, "SGX PCK Certificate and CRL Profile" 1.5)."""
    arc = "1.2.840.113741.1.13.1"
    tcb = [_entry(f"{arc}.2.{n}", _integer(svn)) for n, svn in enumerate(CPU_SVN, start=1)]
    tcb += [_entry(f"{arc}.2.17", _integer(PCE_SVN)), _entry(f"{arc}.2.18", _der(0x04, CPU_SVN))]
    configuration = [_entry(f"{arc}.7.{n}", _der(0x01, b"\xff")) for n in (1, 2, 3)]
    return _der(
        0x30,
        _entry(f"{arc}.1", _der(0x04, secrets.token_bytes(16))),  # PPID
        _entry(f"{arc}.2", _der(0x30, *tcb)),
        _entry(f"{arc}.3", _der(0x04, PCE_ID)),
        _entry(f"{arc}.4", _der(0x04, FMSPC)),
        _entry(f"{arc}.5", _der(0x0A, b"\x01")),  # scalable SGX
        _entry(f"{arc}.6", _der(0x04, secrets.token_bytes(16))),  # PIID
        _entry(f"{arc}.7", _der(0x30, *configuration)),
    )


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < 128:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))  # the extra bit keeps 128 and more positive


def _entry(oid: str, value: bytes) -> bytes:
    first, second, *rest = (int(arc) for arc in oid.split("."))
    encoded = bytes([first * 40 + second])
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.insert(0, 0x80 | arc & 0x7F)
        encoded += bytes(groups)
    return _der(0x30, _der(0x06, encoded), value)
