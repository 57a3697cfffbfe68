# SPDX-License-Identifier: Apache-2.0
"""SIGSTRUCT: the enclave signer's statement (Intel SDM volume 3D, 37.14). Little-endian, 1808 bytes.

      0  header            16  constant              900  signed body      128
     24  header 2          16  constant              960  ENCLAVEHASH       32  = MRENCLAVE
    128  modulus          384  RSA-3072             1024  ISVPRODID          2
    512  exponent           4  3                    1026  ISVSVN             2
    516  signature        384  PKCS#1 v1.5, SHA-256 over the first 128 bytes and the body

MRSIGNER is the SHA-256 of the modulus as it stands there. The signature is verified: values that no processor would
accept are not worth putting into a manifest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from marblemesh.package_info.errors import PackageInfoError

SIZE = 1808
HEADER = bytes.fromhex("06000000e10000000000010000000000")
_HEADER_2 = bytes.fromhex("01010000600000006000000001000000")
_BITS = 3072
_EXPONENT = 3
_DEBUG = 1 << 1


@dataclass(frozen=True, slots=True)
class Sigstruct:
    """`unique_id` is MRENCLAVE, `signer_id` MRSIGNER; `debug`: the enclave is made to run in debug mode."""

    unique_id: bytes
    signer_id: bytes
    product_id: int
    security_version: int
    debug: bool


def parse_sigstruct(data: bytes) -> Sigstruct:
    """Read and verify one SIGSTRUCT. Raises PackageInfoError."""
    if len(data) != SIZE:
        raise PackageInfoError(f"a SIGSTRUCT has {SIZE} bytes, this has {len(data)}")
    if data[:16] != HEADER or data[24:40] != _HEADER_2:
        raise PackageInfoError("no SIGSTRUCT: its header is another one")
    modulus = data[128:512]
    _verify(data, int.from_bytes(modulus, "little"))
    return Sigstruct(
        unique_id=data[960:992],
        signer_id=hashlib.sha256(modulus).digest(),
        product_id=int.from_bytes(data[1024:1026], "little"),
        security_version=int.from_bytes(data[1026:1028], "little"),
        debug=bool(data[928] & _DEBUG),
    )


def _verify(data: bytes, modulus: int) -> None:
    exponent = int.from_bytes(data[512:516], "little")
    if exponent != _EXPONENT or modulus.bit_length() != _BITS or modulus % 2 == 0:
        raise PackageInfoError("the SIGSTRUCT holds no RSA-3072 key with exponent 3: the enclave is not signed")
    try:
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        # Here numbers are little-endian; everywhere else RSA is big-endian.
        key.verify(data[516:900][::-1], data[:128] + data[900:1028], padding.PKCS1v15(), SHA256())
    except (InvalidSignature, ValueError):
        raise PackageInfoError("the signature in the SIGSTRUCT is wrong: the file was changed after signing") from None
