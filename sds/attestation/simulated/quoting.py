# SPDX-License-Identifier: Apache-2.0
"""A simulated machine's quoting enclave: writes the reports that hardware would write, and signs real quotes over them.

The layout is described in :mod:`sds.attestation.quote`.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from dataclasses import dataclass, field
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec

from sds.attestation.quote import SGX_BODY_SIZE, TD_BODY_SIZES
from sds.attestation.report_data import REPORT_DATA_SIZE
from sds.attestation.simulated.documents import QE_PRODUCT, QE_SIGNER, QE_SVN, TDX_SVN
from sds.attestation.simulated.enclave import SimulatedEnclave, SimulatedTd
from sds.attestation.simulated.pki import CPU_SVN, PCE_SVN, Pki, raw_public_key, sign_raw
from sds.attestation.tee import Tee

_INTEL_QE = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_INIT, _DEBUG, _MODE64, _PROVISIONING = 0x01, 0x02, 0x04, 0x10
_XFRM = 0xE7
_SEPT_VE_DISABLE = 1 << 28


@dataclass(frozen=True, slots=True)
class QuotingEnclave:
    """Holds an attestation key that lives as long as the process; the PCK certifies it inside each quote."""

    pki: Pki = field(repr=False)
    attestation_key: ec.EllipticCurvePrivateKey = field(repr=False)
    platform_user_data: bytes

    @classmethod
    def start(cls, pki: Pki) -> Self:
        return cls(pki, ec.generate_private_key(ec.SECP256R1()), secrets.token_bytes(16) + bytes(4))

    def quote_sgx(self, body: bytes) -> bytes:
        """An SGX v3 quote over a report body of 384 bytes."""
        signed = self._header(3, 0, QE_SVN, PCE_SVN) + body
        signature = self._signature(signed) + self._certification(Tee.SGX)
        return signed + struct.pack("<I", len(signature)) + signature

    def quote_td(self, body: bytes, version: int = 4) -> bytes:
        """A TDX quote over a TD report: v4 for 584 bytes, v5 for 584 and 648 (its body types 2 and 3)."""
        signed = self._header(version, 0x81, 0, 0)
        if version == 5:
            kind = next(kind for kind, size in TD_BODY_SIZES.items() if size == len(body))
            signed += struct.pack("<HI", kind, len(body))
        signed += body
        certification = self._certification(Tee.TDX)
        signature = self._signature(signed) + struct.pack("<HI", 6, len(certification)) + certification
        return signed + struct.pack("<I", len(signature)) + signature

    def _header(self, version: int, tee_type: int, qe_svn: int, pce_svn: int) -> bytes:
        return struct.pack("<HHIHH", version, 2, tee_type, qe_svn, pce_svn) + _INTEL_QE + self.platform_user_data

    def _signature(self, signed: bytes) -> bytes:
        return sign_raw(self.attestation_key, signed) + raw_public_key(self.attestation_key)

    def _certification(self, tee: Tee) -> bytes:
        """The QE's own report, which binds the attestation key, signed by the PCK key; then the PCK chain."""
        authentication = bytes(range(32))
        bound = hashlib.sha256(raw_public_key(self.attestation_key) + authentication).digest()
        identity = SimulatedEnclave(hashlib.sha256(b"qe").digest(), QE_SIGNER, QE_PRODUCT[tee], QE_SVN)
        report = sgx_body(identity, bound.ljust(REPORT_DATA_SIZE, b"\0"), flags=_INIT | _MODE64 | _PROVISIONING)
        chain = self.pki.pck_chain.encode()
        return (
            report
            + self.pki.pck.sign(report)
            + struct.pack("<H", len(authentication))
            + authentication
            + struct.pack("<HI", 5, len(chain))
            + chain
        )


def sgx_body(enclave: SimulatedEnclave, report_data: bytes, flags: int = _INIT | _MODE64) -> bytes:
    """An enclave's report body, 384 bytes."""
    body = bytearray(SGX_BODY_SIZE)
    body[0:16] = CPU_SVN
    body[48:64] = struct.pack("<QQ", flags | (_DEBUG if enclave.debug else 0), _XFRM)
    body[64:96] = enclave.unique_id
    body[128:160] = enclave.signer_id
    body[256:260] = struct.pack("<HH", enclave.product_id, enclave.security_version)
    body[320:384] = _exactly_64(report_data)
    return bytes(body)


def td_body(td: SimulatedTd, report_data: bytes, size: int = TD_BODY_SIZES[2]) -> bytes:
    """A trust domain's report, 584 bytes (1.0) or 648 (1.5)."""
    body = bytearray(size)
    body[0:16] = TDX_SVN
    body[120:128] = struct.pack("<Q", _SEPT_VE_DISABLE | (1 if td.debug else 0))
    body[128:136] = struct.pack("<Q", 0x602E7)
    body[136:184] = td.mrtd
    body[184:328] = td.mrconfigid + td.mrowner + td.mrownerconfig
    body[328:520] = b"".join(td.rtmr)
    body[520:584] = _exactly_64(report_data)
    if size > TD_BODY_SIZES[2]:
        body[584:600] = TDX_SVN
    return bytes(body)


def _exactly_64(report_data: bytes) -> bytes:
    if len(report_data) != REPORT_DATA_SIZE:
        raise ValueError(f"report data must be {REPORT_DATA_SIZE} bytes, got {len(report_data)}")
    return report_data
