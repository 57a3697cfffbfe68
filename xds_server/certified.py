# SPDX-License-Identifier: Apache-2.0
"""What a Marble's certificate says about the attestation behind it: written at issue, read back after a restart.

The Coordinator does not keep a list of Marbles. One that it does not remember comes with a certificate of this CA, and
the claims in that are what its quote proved when it was activated; they are judged again by the manifest of today. Two
things are as old as the certificate: the platform's TCB status, and that the instance is who it was. A renewal carries
the claims on, so an instance that has to be judged anew must be activated anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from cryptography import x509

from manifests.model import Manifest
from sds.attestation.claims import Claims, SgxClaims, TdxClaims
from sds.attestation.errors import AttestationError
from sds.attestation.policy import appraise
from sds.attestation.tee import Tee
from sds.csr import CertificateRequest
from sds.errors import SdsError
from xds_server.policy import policy_for

_NO_END = datetime.max.replace(tzinfo=UTC)


class CertifiedError(SdsError):
    """Claims in a certificate that do not say what was attested."""


def certified_claims(claims: Claims | None, fingerprint: str) -> dict[str, object]:
    """What goes into the leaf; `fingerprint` is the manifest's, `claims` None without any attestation."""
    if claims is None:
        return {"tee": "none", "insecure": True, "manifest": fingerprint}
    common: dict[str, object] = {
        "tee": claims.tee.value,
        "measurement": claims.measurement.hex(),
        "tcbStatus": claims.tcb_status,
        "advisories": list(claims.advisories),
        "fmspc": claims.fmspc.hex(),
        "debug": claims.debug,
        "manifest": fingerprint,
        "simulated": claims.simulated,
    }
    if isinstance(claims, SgxClaims):
        return common | {
            "signer": claims.mrsigner.hex(),
            "productId": claims.isv_prod_id,
            "svn": claims.isv_svn,
        }
    return common | {
        "rtmr": [register.hex() for register in claims.rtmr],
        "mrConfigId": claims.mrconfigid.hex(),
        "mrOwner": claims.mrowner.hex(),
        "mrOwnerConfig": claims.mrownerconfig.hex(),
        "mrSeam": claims.mrseam.hex(),
    }


def read_certified(members: Mapping[str, object] | None) -> Claims | None:
    """The claims in a certificate of our own CA, None if it says that there was no attestation.

    What a certificate does not carry (report data, platform id, attributes) is zero: no package asks for it. Raises
    CertifiedError.
    """
    if members is None:
        raise CertifiedError("certificate has no claims extension")
    if members.get("insecure") is True:
        return None
    found = _Members(members)
    tee = found.text("tee")
    if tee == Tee.SGX.value:
        return _sgx(found)
    if tee == Tee.TDX.value:
        return _tdx(found)
    raise CertifiedError(f"certified claims of an unknown TEE {tee[:20]!r}")


def names_of(certificate: x509.Certificate) -> CertificateRequest:
    """What of a certificate of our own CA goes into the one that renews it: subject, DNS names, addresses."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return CertificateRequest((), (), certificate.subject)
    addresses = tuple(a for a in names.get_values_for_type(x509.IPAddress) if isinstance(a, IPv4Address | IPv6Address))
    return CertificateRequest(tuple(names.get_values_for_type(x509.DNSName)), addresses, certificate.subject)


def still_allowed(manifest: Manifest, marble_type: str, claims: Claims | None, *, insecure: bool) -> bool:
    """Whether what was attested once satisfies the (effective) manifest of today."""
    marble = manifest.marbles.get(marble_type)
    package = None if marble is None else manifest.packages.get(marble.package)
    if package is None:
        return False
    if claims is None:
        return insecure
    try:
        appraise(claims, policy_for(package, claims.tee))
    except AttestationError:
        return False
    return True


class _Members:
    """JSON members by type; every accessor raises CertifiedError."""

    def __init__(self, members: Mapping[str, object]) -> None:
        self._members = members

    def text(self, name: str) -> str:
        return _typed(self._members.get(name), str, name)

    def integer(self, name: str) -> int:
        value = self._members.get(name)
        if type(value) is not int:
            raise _wrong(name)
        return value

    def flag(self, name: str) -> bool:
        return _typed(self._members.get(name), bool, name)

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(_typed(item, str, name) for item in _typed(self._members.get(name), list, name))

    def data(self, name: str, size: int) -> bytes:
        return _hex(self.text(name), size, name)


_T = TypeVar("_T")


def _typed(value: object, kind: type[_T], name: str) -> _T:
    if not isinstance(value, kind):
        raise _wrong(name)
    return value


def _hex(text: str, size: int, name: str) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise _wrong(name) from None
    if len(data) != size:
        raise _wrong(name)
    return data


def _wrong(name: str) -> CertifiedError:
    return CertifiedError(f"certified claim {name} is missing or not in its form")


def _sgx(found: _Members) -> SgxClaims:
    return SgxClaims(
        mrenclave=found.data("measurement", 32),
        mrsigner=found.data("signer", 32),
        isv_prod_id=found.integer("productId"),
        isv_svn=found.integer("svn"),
        debug=found.flag("debug"),
        attributes=bytes(16),
        misc_select=0,
        cpu_svn=bytes(16),
        isv_ext_prod_id=bytes(16),
        isv_family_id=bytes(16),
        config_id=bytes(64),
        config_svn=0,
        report_data=bytes(64),
        tcb_status=found.text("tcbStatus"),
        advisories=found.texts("advisories"),
        tcb_evaluation_number=0,
        fmspc=found.data("fmspc", 6),
        platform_id=None,
        simulated=found.flag("simulated"),
        collateral_expires=_NO_END,
    )


def _tdx(found: _Members) -> TdxClaims:
    registers = tuple(_hex(text, 48, "rtmr") for text in found.texts("rtmr"))
    if len(registers) != 4:
        raise _wrong("rtmr")
    return TdxClaims(
        mrtd=found.data("measurement", 48),
        rtmr=(registers[0], registers[1], registers[2], registers[3]),
        mrconfigid=found.data("mrConfigId", 48),
        mrowner=found.data("mrOwner", 48),
        mrownerconfig=found.data("mrOwnerConfig", 48),
        mrseam=found.data("mrSeam", 48),
        mrsignerseam=bytes(48),
        td_attributes=bytes(8),
        xfam=bytes(8),
        debug=found.flag("debug"),
        tee_tcb_svn=bytes(16),
        mrservicetd=None,
        report_data=bytes(64),
        tcb_status=found.text("tcbStatus"),
        advisories=found.texts("advisories"),
        tcb_evaluation_number=0,
        fmspc=found.data("fmspc", 6),
        platform_id=None,
        simulated=found.flag("simulated"),
        collateral_expires=_NO_END,
    )
