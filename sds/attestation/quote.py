# SPDX-License-Identifier: Apache-2.0
"""The layout of DCAP quotes: SGX v3, TDX v4 and v5 (Intel, "SGX ECDSA QuoteLibReference" appendix A, "TDX DCAP" A.3).

::

    header 48 │ [v5: u16 body type, u32 body size] │ body │ u32 length │ signature data
    ├────────────────── signed ──────────────────────────┤

    signature data v3     quote signature 64 │ attestation key 64 │ QE certification
    signature data v4/v5  quote signature 64 │ attestation key 64 │ u16 6, u32 size │ QE certification
    QE certification      QE report 384 │ its signature 64 │ u16 n, n bytes │ u16 5, u32 size │ PEM chain

All integers are little-endian. Every length must fit exactly: a byte that belongs to nothing is refused, so that the
parser that finds the certificates and the one that verifies the signatures cannot read two different things.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from cryptography import x509

from sds.attestation.errors import Malformed, Mismatch, PolicyViolation, Unsupported
from sds.attestation.tee import Tee
from sds.x509_errors import X509_ERRORS

# A quote is 4-6 KB, nearly all of it the certificate chain. 16 KiB leaves room for a longer chain, and 10 000 forged
# activations per second still cost no more than 160 MB/s of copying.
MAX_QUOTE = 16 * 1024

HEADER_SIZE = 48
SGX_BODY_SIZE = 384
# Body types of a v5 quote and their sizes: TD report 1.0, 1.5, and 1.5 with what a migration leaves behind.
TD_BODY_SIZES = {2: 584, 3: 648, 4: 885}

MAX_CERTIFICATES = 8

_INTEL_QE = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_ECDSA_P256 = 2
_TEE_TYPES = {0: Tee.SGX, 0x81: Tee.TDX}
_PCK_CHAIN, _QE_CERTIFICATION = 5, 6

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\r\n]{1,8000}-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class Quote:
    """The parts of a quote, none of them verified."""

    tee: Tee
    version: int
    raw: bytes
    """The quote, cut at its declared length."""
    body: bytes
    """The TEE's report, 384 bytes for SGX, 584, 648 or 885 for TDX."""
    pck_chain: tuple[x509.Certificate, ...]
    """Leaf first, as sent."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Take a quote apart. Zero padding after it is cut off, as the kernel and vsock interfaces add it.

        :raises Malformed: if a length does not fit.
        :raises Unsupported: if this is not an ECDSA-P256 quote of SGX (v3) or TDX (v4, v5) by Intel's QE.
        """
        reader = _Reader(data)
        version, key_type, tee_type = struct.unpack("<HHI", reader.take(8, "header"))
        rest = reader.take(HEADER_SIZE - 8, "header")
        tee = _TEE_TYPES.get(tee_type)
        if version not in (3, 4, 5):
            raise Unsupported(f"quote version: {version}, supported are 3, 4 and 5")
        if tee is None or (version == 3) != (tee is Tee.SGX):
            raise Unsupported(
                f"quote TEE: type {tee_type:#x} in version {version}; supported: SGX in 3, TDX in 4 and 5"
            )
        if key_type != _ECDSA_P256:
            raise Unsupported(f"quote attestation key: type {key_type}, supported is 2 (ECDSA P-256)")
        if rest[4:20] != _INTEL_QE:
            raise Unsupported(f"quoting enclave: vendor {rest[4:20].hex()}, supported is Intel's")
        body = reader.take(_body_size(reader, version), "body")
        signature = _Reader(reader.take(reader.u32("signature length"), "signature data"))
        size = reader.position
        if data[size:].strip(b"\0"):
            raise Malformed(f"quote size: {len(data) - size} bytes follow the declared end at {size}")
        if size > MAX_QUOTE:
            raise Malformed(f"quote size: {size} bytes, at most {MAX_QUOTE} are accepted")
        return cls(tee, version, data[:size], body, _pck_chain(signature, version))

    @property
    def report_data(self) -> bytes:
        """64 bytes, wherever this kind of body has them."""
        return self.body[320:384] if self.tee is Tee.SGX else self.body[520:584]

    @property
    def debug(self) -> bool:
        """Bit 1 of an enclave's ATTRIBUTES, bit 0 of a trust domain's TDATTRIBUTES."""
        return bool(self.body[48] & 0x02) if self.tee is Tee.SGX else bool(self.body[120] & 0x01)


def refuse_debug(quote: Quote) -> None:
    """A debugger outside may read and write such an enclave's memory: its quote proves nothing.

    :raises PolicyViolation: if the flag is set.
    """
    if quote.debug:
        raise PolicyViolation([Mismatch("debug", "false", "true (a debug enclave keeps no secrets; build it without)")])


@lru_cache(maxsize=64)
def read_chain(pem: bytes, what: str) -> tuple[x509.Certificate, ...]:
    """Certificates of a PEM text with nothing but white space (and a final NUL) around them.

    Every quote of a machine carries the same chain, and reading it takes longer than judging the quote: the last 64
    good ones (1 MiB at most) are kept. What is in them is judged each time.

    :raises Malformed: if there is anything else, none, more than eight, or one cannot be read.
    """
    blocks = _BLOCK.findall(pem)
    if _BLOCK.sub(b"", pem).rstrip(b"\0").strip():
        raise Malformed(f"{what}: something other than PEM certificates is in it")
    if not 1 <= len(blocks) <= MAX_CERTIFICATES:
        raise Malformed(f"{what}: {len(blocks)} certificates, expected 1 to {MAX_CERTIFICATES}")
    try:
        chain = tuple(x509.load_pem_x509_certificate(block) for block in blocks)
        for certificate in chain:
            # The library reads these only when asked, and a broken one would raise in the middle of a check.
            _ = (certificate.subject, certificate.issuer, certificate.public_key(), certificate.not_valid_after_utc)
    except X509_ERRORS as e:
        raise Malformed(f"{what}: a certificate cannot be read: {e}") from e
    return chain


def _body_size(reader: _Reader, version: int) -> int:
    if version == 3:
        return SGX_BODY_SIZE
    if version == 4:
        return TD_BODY_SIZES[2]
    kind, size = reader.u16("body type"), reader.u32("body size")
    if kind not in TD_BODY_SIZES:
        raise Unsupported(f"quote body: type {kind}, supported are 2, 3 and 4 (TD reports)")
    if size != TD_BODY_SIZES[kind]:
        raise Malformed(f"quote body: type {kind} with {size} bytes, expected {TD_BODY_SIZES[kind]}")
    return size


def _pck_chain(reader: _Reader, version: int) -> tuple[x509.Certificate, ...]:
    reader.take(128, "quote signature and attestation key")
    if version != 3:
        reader = _certification(reader, _QE_CERTIFICATION, "QE certification data")
    reader.take(SGX_BODY_SIZE + 64, "QE report and signature")
    reader.take(reader.u16("QE authentication data length"), "QE authentication data")
    chain = _certification(reader, _PCK_CHAIN, "PCK certificate chain")
    return read_chain(chain.rest(), "PCK certificate chain")


def _certification(reader: _Reader, expected: int, what: str) -> _Reader:
    kind = reader.u16(f"{what}: type")
    if kind != expected:
        # Types 1 to 3 hold an encrypted platform id and would need a look-up at Intel; every quoting library of the
        # last years can be told to put the chain in, and by default does.
        raise Unsupported(f"{what}: certification data type {kind}, supported is {expected}")
    inner = reader.take(reader.u32(f"{what}: size"), what)
    if reader.rest():
        raise Malformed(f"{what}: {len(reader.rest())} bytes follow it")
    return _Reader(inner)


class _Reader:
    """Cuts pieces off the front, and says which one was missing."""

    __slots__ = ("_data", "position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int, what: str) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise Malformed(f"quote {what}: {size} bytes declared, {len(self._data) - self.position} are left")
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def u16(self, what: str) -> int:
        return int.from_bytes(self.take(2, what), "little")

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def rest(self) -> bytes:
        return self._data[self.position :]
