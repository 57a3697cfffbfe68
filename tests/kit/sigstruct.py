# SPDX-License-Identifier: Apache-2.0
"""Signed enclaves, as far as their SIGSTRUCT goes: a real RSA-3072 key with exponent 3, a real signature."""

from __future__ import annotations

import struct
from functools import cache

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from marblemesh.package_info.sigstruct import HEADER, SIZE

UNIQUE_ID = bytes(range(32))


@cache
def signer() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(3, 3072)


def modulus() -> bytes:
    """As it stands in the SIGSTRUCT."""
    return signer().public_key().public_numbers().n.to_bytes(384, "little")


def sigstruct(*, product_id: int = 7, security_version: int = 3, debug: bool = False, signed: bool = True) -> bytes:
    """1808 bytes, as `sgx_sign`, `oesign` and `gramine-sgx-sign` write them."""
    data = bytearray(SIZE)
    data[:16] = HEADER
    data[20:24] = bytes.fromhex("02012026")  # the date, BCD
    data[24:40] = bytes.fromhex("01010000600000006000000001000000")
    data[128:512] = modulus()
    struct.pack_into("<I", data, 512, 3)
    data[928] = 0x04 | (0x02 if debug else 0)  # 64 bit, debug
    data[960:992] = UNIQUE_ID
    struct.pack_into("<HH", data, 1024, product_id, security_version)
    if signed:
        message = bytes(data[:128] + data[900:1028])
        data[516:900] = signer().sign(message, padding.PKCS1v15(), SHA256())[::-1]
    return bytes(data)


def elf(section: bytes, name: str = ".oeinfo", *, sections: int = 3) -> bytes:
    """A minimal 64-bit ELF file: null section, names, and one more with these contents."""
    names = b"\0.shstrtab\0" + name.encode() + b"\0"
    body = names + section
    header = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64 + len(body), 0, 64, 56, 0, 64, sections, 1)
    )

    def entry(name_at: int, kind: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name_at, kind, 0, 0, offset, size, 0, 0, 1, 0)

    table = bytes(64) + entry(1, 3, 64, len(names)) + entry(11, 1, 64 + len(names), len(section))
    return header + body + table
