# SPDX-License-Identifier: Apache-2.0
"""Evidence as it travels: a DCAP quote, with or without Open Enclave's 16 bytes in front.

A quote is malleable outside its signed range (bytes after it, the PEM text, s -> n-s), so its hash identifies nothing:
never use it as a key of a cache or a replay list.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Self

from sds.attestation.errors import Malformed
from sds.attestation.quote import MAX_QUOTE, Quote
from sds.attestation.tee import Tee

__all__ = ["Evidence", "Tee"]

# Open Enclave's remote report: u32 version 1, u32 type 2 (remote report), u64 length of the quote; all little-endian.
_OE_HEADER = struct.Struct("<IIQ")
_OE_VERSION, _OE_REMOTE_REPORT = 1, 2

# The largest form in which evidence travels.
MAX_EVIDENCE = MAX_QUOTE + _OE_HEADER.size


@dataclass(frozen=True, slots=True)
class Evidence:
    """A raw DCAP quote, cut at its declared length. Parsed for its size only: nothing in it is verified."""

    tee: Tee
    quote: bytes = field(repr=False)

    @classmethod
    def parse(cls, blob: bytes) -> Self:
        """Read a quote that came over the network, with or without Open Enclave's header.

        :raises Malformed: if it is too large, cut short, or followed by anything but zero padding.
        :raises Unsupported: if it is well formed, but of a version, key type or TEE that cannot be verified.
        """
        if len(blob) > MAX_EVIDENCE:
            raise Malformed(f"quote size: {len(blob)} bytes, at most {MAX_QUOTE} are accepted")
        parsed = Quote.parse(_without_oe_header(bytes(blob)))
        return cls(parsed.tee, parsed.raw)

    def to_wire(self) -> bytes:
        """The form that MarbleRun's peers send and expect: SGX with Open Enclave's header, TDX raw."""
        if self.tee is Tee.SGX:
            return _OE_HEADER.pack(_OE_VERSION, _OE_REMOTE_REPORT, len(self.quote)) + self.quote
        return self.quote


def _without_oe_header(blob: bytes) -> bytes:
    """A raw quote starts with a u16 version of 3, 4 or 5; Open Enclave's header with a u32 of 1."""
    if len(blob) < _OE_HEADER.size or blob[:4] != _OE_VERSION.to_bytes(4, "little"):
        return blob
    _, kind, length = _OE_HEADER.unpack_from(blob)
    if kind != _OE_REMOTE_REPORT:
        raise Malformed(f"quote header: Open Enclave report type {kind}, expected {_OE_REMOTE_REPORT} (remote report)")
    quote = blob[_OE_HEADER.size :]
    if length != len(quote):
        raise Malformed(f"quote header: Open Enclave header declares {length} bytes, {len(quote)} follow")
    return quote
